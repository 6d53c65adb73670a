//! Black-box tests: the real binary, a real git server, a real kernel. They
//! need root and fail without it.
//!
//! A scenario is a function over a [`World`]; scenarios of one world share its
//! server and run one after the other. `cargo test --workspace --test blackbox --
//! WORD` runs those whose name has the word.

mod api;
mod boot;
mod checkout;
mod cli;
mod clients;
mod cluster;
mod commands;
mod crash;
mod exhaust;
mod files;
mod hostile;
mod images;
mod isolation;
mod lifecycle;
mod limits;
mod load;
mod machine;
mod network;
mod provider;
mod public;
mod room;
mod services;
mod streams;
mod vercel;
mod walls;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use world::{Disk, World};

type Scenario = (&'static str, fn(&World) -> anyhow::Result<()>);

/// Scenarios of the first world: defaults, with little memory and disk so that
/// both limits are reached.
const SHARED: &[Scenario] = &[
    ("api::main_job", api::main_job),
    ("api::branches", api::branches),
    ("api::bad_input", api::bad_input),
    ("api::credentials", api::credentials),
    ("api::failed_clone_leaves_nothing", api::failed_clone_leaves_nothing),
    ("api::ephemeral", api::ephemeral),
    ("api::siblings", api::siblings),
    ("api::sessions_have_the_fields_of_the_contract", api::sessions_have_the_fields_of_the_contract),
    ("api::one_session_200_posts", api::one_session_200_posts),
    ("api::fifty_sessions", api::fifty_sessions),
    ("checkout::warm", checkout::warm),
    ("checkout::ready_copies", checkout::ready_copies),
    ("checkout::progress", checkout::progress),
    ("checkout::branches", checkout::branches),
    ("checkout::large_files", checkout::large_files),
    ("checkout::odd_remotes", checkout::odd_remotes),
    ("checkout::set_up", checkout::set_up),
    ("boot::always", boot::always),
    ("boot::closed_root", boot::closed_root),
    ("boot::nothing_left", boot::nothing_left),
    ("boot::edits", boot::edits),
    ("boot::new_each_time", boot::new_each_time),
    ("boot::full", boot::full),
    ("commands::exit_codes", commands::exit_codes),
    ("commands::streams", commands::streams),
    ("commands::timeout_and_signals", commands::timeout_and_signals),
    ("commands::nothing_of_the_starter", commands::nothing_of_the_starter),
    ("commands::files", commands::files),
    ("streams::a_full_disk_loses_no_output", streams::a_full_disk_loses_no_output),
    ("streams::what_is_lost_is_said", streams::what_is_lost_is_said),
    ("streams::a_slow_reader_gets_everything", streams::a_slow_reader_gets_everything),
    ("streams::bytes_stay_bytes", streams::bytes_stay_bytes),
    ("streams::no_input_is_lost", streams::no_input_is_lost),
    ("streams::silence_is_no_death", streams::silence_is_no_death),
    ("streams::streams_have_names", streams::streams_have_names),
    ("streams::out_of_memory_is_said", streams::out_of_memory_is_said),
    ("streams::signals_reach_the_tree", streams::signals_reach_the_tree),
    ("streams::a_burst_is_no_death", streams::a_burst_is_no_death),
    ("streams::uploads_are_whole", streams::uploads_are_whole),
    ("streams::the_command_line", streams::the_command_line),
    ("streams::refusals", streams::refusals),
    ("streams::a_sandbox_begins_again", streams::a_sandbox_begins_again),
    ("isolation::identity", isolation::identity),
    ("isolation::syscalls", isolation::syscalls),
    ("isolation::kernel_files", isolation::kernel_files),
    ("isolation::nothing_of_the_host", isolation::nothing_of_the_host),
    ("isolation::agent", isolation::agent),
    ("isolation::network", isolation::network),
    ("isolation::two_sandboxes", isolation::two_sandboxes),
    ("isolation::hostile_image", isolation::hostile_image),
    ("isolation::linked_files", isolation::linked_files),
    ("walls::writable_files", walls::writable_files),
    ("walls::every_call", walls::every_call),
    ("exhaust::accounts_of_the_kernel", exhaust::accounts_of_the_kernel),
    ("exhaust::what_nobody_has", exhaust::what_nobody_has),
    ("exhaust::core_dumps", exhaust::core_dumps),
    ("exhaust::neighbours_are_few", exhaust::neighbours_are_few),
    ("exhaust::buffers_of_sockets", exhaust::buffers_of_sockets),
    ("exhaust::own_filters", exhaust::own_filters),
    ("walls::the_agent_goes_on", walls::the_agent_goes_on),
    ("walls::memory_of_nobody", walls::memory_of_nobody),
    ("walls::limits_are_seen", walls::limits_are_seen),
    ("walls::quotas", walls::quotas),
    ("walls::more_than_fits", walls::more_than_fits),
    ("walls::lxcfs", walls::lxcfs),
    ("walls::what_root_leaves", walls::what_root_leaves),
    ("walls::links_of_proc", walls::links_of_proc),
    ("walls::a_replaced_shell", walls::a_replaced_shell),
    ("walls::names_and_hosts", walls::names_and_hosts),
    ("walls::a_name_without_end", walls::a_name_without_end),
    ("walls::a_run_that_does_not_end", walls::a_run_that_does_not_end),
    ("hostile::archives", hostile::archives),
    ("hostile::downloads", hostile::downloads),
    ("hostile::places_of_drives", hostile::places_of_drives),
    ("hostile::privileges", hostile::privileges),
    ("hostile::device_races", hostile::device_races),
    ("hostile::terminals", hostile::terminals),
    ("hostile::floods", hostile::floods),
    ("hostile::processors", hostile::processors),
    ("hostile::many_files", hostile::many_files),
    ("files::behaviour", files::behaviour),
    ("files::posix", files::posix),
    ("images::registry_and_layout", images::registry_and_layout),
    ("limits::processes", limits::processes),
    ("limits::memory", limits::memory),
    ("limits::disk", limits::disk),
    ("limits::disk_across_stops", limits::disk_across_stops),
    ("limits::deep_trees", limits::deep_trees),
    ("lifecycle::stop_ends_everything", lifecycle::stop_ends_everything),
    ("lifecycle::archive_and_back", lifecycle::archive_and_back),
    ("lifecycle::changes_under_use", lifecycle::changes_under_use),
    ("lifecycle::death_is_noticed", lifecycle::death_is_noticed),
    ("lifecycle::restart_keeps_sandboxes", lifecycle::restart_keeps_sandboxes),
    ("lifecycle::used_after_a_crash", lifecycle::used_after_a_crash),
    ("lifecycle::a_stop_finishes_what_was_left", lifecycle::a_stop_finishes_what_was_left),
    ("lifecycle::a_spoiled_record", lifecycle::a_spoiled_record),
    ("lifecycle::a_replaced_image_starts_cold", lifecycle::a_replaced_image_starts_cold),
    ("lifecycle::events_are_told", lifecycle::events_are_told),
    ("lifecycle::what_hangs_is_called_off", lifecycle::what_hangs_is_called_off),
    ("lifecycle::a_session_says_what_is", lifecycle::a_session_says_what_is),
];

/// Scenarios of a world whose sandboxes fall asleep after two seconds.
const SLEEPY: &[Scenario] = &[
    ("lifecycle::idle_sandboxes_sleep", lifecycle::idle_sandboxes_sleep),
    ("lifecycle::others_sleep_beside_hanging_clones", lifecycle::others_sleep_beside_hanging_clones),
    ("lifecycle::a_running_command_defers_sleep", lifecycle::a_running_command_defers_sleep),
    ("lifecycle::traffic_and_terminals_defer_sleep", lifecycle::traffic_and_terminals_defer_sleep),
    ("lifecycle::silence_does_not", lifecycle::silence_does_not),
    ("lifecycle::a_lifetime_ends_without_a_server", lifecycle::a_lifetime_ends_without_a_server),
    ("lifecycle::a_right_ends_what_it_opened", lifecycle::a_right_ends_what_it_opened),
    ("crash::kill_at_any_moment", crash::kill_at_any_moment),
    ("crash::kill_at_every_step", crash::kill_at_every_step),
    ("crash::kill_under_all_operations", crash::kill_under_all_operations),
];

/// Scenarios of a world whose rows are in Postgres.
const POSTGRES: &[Scenario] = &[
    ("api::main_job", api::main_job),
    ("api::siblings", api::siblings),
    ("api::failed_clone_leaves_nothing", api::failed_clone_leaves_nothing),
    ("api::ephemeral", api::ephemeral),
    ("api::one_session_200_posts", api::one_session_200_posts),
    ("api::fifty_sessions", api::fifty_sessions),
    ("commands::files", commands::files),
    ("lifecycle::stop_ends_everything", lifecycle::stop_ends_everything),
    ("lifecycle::archive_and_back", lifecycle::archive_and_back),
    ("lifecycle::changes_under_use", lifecycle::changes_under_use),
    ("lifecycle::restart_keeps_sandboxes", lifecycle::restart_keeps_sandboxes),
    ("lifecycle::used_after_a_crash", lifecycle::used_after_a_crash),
    ("lifecycle::a_stop_finishes_what_was_left", lifecycle::a_stop_finishes_what_was_left),
    ("lifecycle::a_spoiled_record", lifecycle::a_spoiled_record),
    ("lifecycle::events_are_told", lifecycle::events_are_told),
    ("provider::owners_and_teams", provider::owners_and_teams),
    ("provider::lost_answers", provider::lost_answers),
    ("provider::use_of_a_session", provider::use_of_a_session),
    ("vercel::client_conforms", vercel::client_conforms),
    ("crash::kill_on_postgres", crash::kill_on_postgres),
    ("cluster::two_servers", cluster::two_servers),
];

/// Scenarios of a world on the plain storage driver.
const PLAIN: &[Scenario] = &[
    ("api::main_job", api::main_job),
    ("provider::no_drives", provider::no_drives),
    ("commands::files", commands::files),
    ("files::behaviour", files::behaviour),
    ("files::posix", files::posix),
    ("isolation::two_sandboxes", isolation::two_sandboxes),
    ("limits::deep_trees", limits::deep_trees),
    ("lifecycle::stop_ends_everything", lifecycle::stop_ends_everything),
    ("lifecycle::restart_keeps_sandboxes", lifecycle::restart_keeps_sandboxes),
];

/// Scenarios of a world with the defaults.
const CLIENTS: &[Scenario] = &[
    ("images::runtimes", images::runtimes),
    ("machine::a_days_work", machine::a_days_work),
    ("machine::a_browser", machine::a_browser),
    ("machine::dev_servers", machine::dev_servers),
    ("machine::recipes", machine::recipes),
    ("clients::sdk", clients::sdk),
    ("clients::runtimes", clients::runtimes),
    ("clients::python", clients::python),
    ("clients::older_sdk", clients::older_sdk),
    ("clients::policies", clients::policies),
    ("clients::command_line", clients::command_line),
    ("clients::computesdk", clients::computesdk),
    ("clients::documentation", clients::documentation),
    ("provider::owners_and_teams", provider::owners_and_teams),
    ("provider::lost_answers", provider::lost_answers),
    ("provider::snapshots_expire", provider::snapshots_expire),
    ("provider::drives_outlive_a_crash", provider::drives_outlive_a_crash),
    ("provider::use_of_a_session", provider::use_of_a_session),
    ("provider::ports_wake", provider::ports_wake),
    ("provider::policies_hold", provider::policies_hold),
    ("provider::tarballs", provider::tarballs),
    ("cli::sandboxes_and_snapshots", cli::sandboxes_and_snapshots),
    ("cli::shell", cli::shell),
    ("cli::doctor", cli::doctor),
    ("cli::one_server_of_an_instance", cli::one_server_of_an_instance),
    ("cli::quickstart", cli::quickstart),
    ("services::restart", services::restart),
    ("vercel::engine_conforms", vercel::engine_conforms),
    ("vercel::a_stop_is_frugal", vercel::a_stop_is_frugal),
    ("vercel::client_conforms", vercel::client_conforms),
    ("vercel::sessions_run_elsewhere", vercel::sessions_run_elsewhere),
    ("vercel::elsewhere_is_away", vercel::elsewhere_is_away),
    ("vercel::credentials_are_brokered", vercel::credentials_are_brokered),
];

/// Scenarios of a world with an outside of its own ([`dormouse_tests::outside`]).
const OUTSIDE: &[Scenario] = &[
    ("network::addresses", network::addresses),
    ("network::connections", network::connections),
    ("network::policies_change", network::policies_change),
    ("network::names", network::names),
    ("network::resolver", network::resolver),
    ("network::requests", network::requests),
    ("network::credentials", network::credentials),
    ("network::secrets", network::secrets),
    ("network::programs", network::programs),
    ("network::proxied", network::proxied),
];

/// Scenarios of a world on a disk of 4 GiB, on which a sandbox may have more.
const CRAMPED: &[Scenario] = &[
    ("room::one_fills_the_disk", room::one_fills_the_disk),
    ("room::others_fill_the_disk", room::others_fill_the_disk),
    ("room::the_pool_takes_no_writes", room::the_pool_takes_no_writes),
    ("room::the_pool_has_holes", room::the_pool_has_holes),
    ("room::a_look_fails", room::a_look_fails),
    ("room::somebody_holds_a_file", room::somebody_holds_a_file),
];

/// Scenarios of worlds whose pool is the operator's device, or file system.
const OTHER_POOLS: &[Scenario] = &[
    ("api::main_job", api::main_job),
    ("room::one_fills_the_disk", room::one_fills_the_disk),
    ("room::the_pool_takes_no_writes", room::the_pool_takes_no_writes),
];

/// Scenarios of a world on a disk that loses power.
const UNRELIABLE: &[Scenario] = &[("crash::power_cuts", crash::power_cuts)];

/// Configuration of the first world.
const SMALL: &str = "org_snapshots.tip_interval = \"1s\"\n[sandbox]\nmemory_mib = 1024\ndisk_mib = 256\n";

/// Instance of the world with an outside of its own.
pub(crate) const NETWORK: u8 = 6;

/// Instance of the world with the defaults, image included.
pub(crate) const CLIENTS_WORLD: u8 = 8;

/// Instance of the world whose rows are in Postgres.
const ON_POSTGRES: u8 = 15;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    let (mut passed, mut failed) = (0, 0);
    let worlds = [
        (14, SMALL, Disk::Host, SHARED),
        (CLIENTS_WORLD, "", Disk::Host, CLIENTS),
        (9, "storage.driver = \"plain\"\n", Disk::Host, PLAIN),
        (
            13,
            "[lifecycle]\nidle_timeout = \"2s\"\nunattended = \"8s\"\n[sandbox]\nstop_grace = \"200ms\"\n",
            Disk::Host,
            SLEEPY,
        ),
        (10, "[sandbox]\ndisk_mib = 16384\n", Disk::Small(4096), CRAMPED),
        (11, "[sandbox]\ndisk_mib = 16384\n", Disk::Device(2048), OTHER_POOLS),
        (12, "[sandbox]\ndisk_mib = 16384\n", Disk::Mounted(2048), OTHER_POOLS),
        (NETWORK, "[sandbox]\nstop_grace = \"200ms\"\n", Disk::Host, OUTSIDE),
        (7, "[sandbox]\nstop_grace = \"200ms\"\n", Disk::Unreliable(6144), UNRELIABLE),
        (ON_POSTGRES, "[sandbox]\nstop_grace = \"200ms\"\n", Disk::Host, POSTGRES),
    ];
    for (instance, config, disk, scenarios) in worlds {
        let scenarios: Vec<_> =
            scenarios.iter().filter(|(name, _)| runs(&format!("{instance}/{name}"))).collect();
        if scenarios.is_empty() {
            continue;
        }
        if let Err(error) = World::sweep(instance) {
            eprintln!("sweep world {instance}: {error:#}");
        }
        let before = world::Footprint::take(instance);
        let mut config = config.to_owned();
        if instance == ON_POSTGRES {
            let database = dormouse_store::testing::Postgres::shared().database();
            config = format!("database_url = \"{database}\"\n{config}");
        }
        if instance == CLIENTS_WORLD {
            match machine::registries() {
                Ok(line) => config += &line,
                Err(error) => {
                    eprintln!("the registries of this host: {error:#}");
                    failed += scenarios.len();
                    continue;
                }
            }
        }
        // It lasts as long as the world.
        let mut _outside = None;
        if instance == NETWORK {
            match network::start_outside() {
                Ok(started) => {
                    config = format!("{config}{}", started.config());
                    _outside = Some(started);
                }
                Err(error) => {
                    eprintln!("the outside does not start: {error:#}");
                    failed += scenarios.len();
                    continue;
                }
            }
        }
        let world = match World::start(instance, &config, disk) {
            Ok(world) => world,
            Err(error) => {
                eprintln!("world {instance} does not start: {error:#}");
                failed += scenarios.len();
                continue;
            }
        };
        for (name, scenario) in scenarios {
            let started = Instant::now();
            match scenario(&world) {
                Ok(()) => {
                    passed += 1;
                    eprintln!("ok    {instance}/{name} ({:.1} s)", started.elapsed().as_secs_f32());
                }
                Err(error) => {
                    failed += 1;
                    eprintln!("FAIL  {instance}/{name}: {error:#}\n{}", world.log_tail(15));
                }
            }
        }
        let left = world.finish().map(|()| world::Footprint::take(instance));
        match left {
            Ok(after) if after == before => {
                passed += 1;
                eprintln!("ok    world {instance} left nothing behind");
            }
            other => {
                failed += 1;
                eprintln!("FAIL  world {instance} left something behind: before {before:?}, after {other:?}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
