//! `dormouse image build|list`.

use std::process::ExitCode;
use std::time::Duration;

use dormouse_jobs::Clock;
use dormouse_node::{ImageSource, Images, Recipe, host_id};
use dormouse_store::Db;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::ImageAction;
use crate::config::{Config, prepare_data_dir};
use crate::output::Output;

pub(crate) async fn run(action: ImageAction, output: &Output) -> anyhow::Result<ExitCode> {
    match action {
        ImageAction::Build { data, name, recipe, tar, oci_layout, from, if_missing } => {
            let config = Config::load_data(&data)?;
            let name = name.or_else(|| recipe.map(|recipe| recipe.name().to_owned()));
            let name = name.unwrap_or_else(|| "default".to_owned());
            prepare_data_dir(&config.data_dir)?;
            let db = Db::open(&config.database()?).await?;
            let host = host_id(&config.data_dir)?;
            if let Some(found) = db.image(&host, &name).await?.filter(|_| if_missing) {
                output.data(&json!({"id": found.id, "name": name, "built": false}), found.id.as_str());
                return Ok(ExitCode::SUCCESS);
            }
            // At most one of them, as the command line says.
            let source = from
                .map(ImageSource::Registry)
                .or(tar.map(ImageSource::Tar))
                .or(oci_layout.map(ImageSource::OciLayout))
                .unwrap_or(ImageSource::Recipe(recipe.unwrap_or(Recipe::DEFAULT)));
            let images = Images::open(config.pool(), &config.image_cache(), db)?
                .with_apt_sources(config.images.apt_sources.as_deref())?;
            let bar = ProgressBar::new_spinner().with_prefix(format!("image {name}"));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            let shown = bar.clone();
            let plain = bar.is_hidden();
            let progress = move |step: &str| {
                shown.set_message(step.to_owned());
                if plain {
                    // No terminal: a line for each step keeps a log alive.
                    let _ = std::io::Write::write_all(
                        &mut std::io::stderr(),
                        format!("image: {step}\n").as_bytes(),
                    );
                }
            };
            let image = images.build(&name, source, Clock::system().now(), progress).await?;
            bar.finish_and_clear();
            let mib = image.size_bytes >> 20;
            let json = json!({
                "id": image.id,
                "name": image.name,
                "digest": image.digest,
                "sizeBytes": image.size_bytes,
                "built": true,
            });
            output.data(&json, &format!("{} {} ({mib} MiB)", image.id, image.name));
        }
        ImageAction::List { data } => {
            let config = Config::load_data(&data)?;
            prepare_data_dir(&config.data_dir)?;
            let host = host_id(&config.data_dir)?;
            let images = Db::open(&config.database()?).await?.images(&host).await?;
            let json: Vec<_> = images
                .iter()
                .map(|image| {
                    json!({
                        "id": image.id,
                        "name": image.name,
                        "digest": image.digest,
                        "source": image.source,
                        "sizeBytes": image.size_bytes,
                        "createdAt": image.created_at,
                        "replacedAt": image.replaced_at,
                    })
                })
                .collect();
            let rows: Vec<_> = images
                .iter()
                .map(|image| {
                    let replaced = if image.replaced_at.is_some() { " (replaced)" } else { "" };
                    vec![
                        format!("{}{replaced}", image.name),
                        image.id.to_string(),
                        format!("{} MiB", image.size_bytes >> 20),
                        image.source.clone(),
                    ]
                })
                .collect();
            output.table(&json!({"images": json}), &["NAME", "ID", "SIZE", "SOURCE"], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}
