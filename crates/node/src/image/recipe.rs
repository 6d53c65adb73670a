//! Recipes of this release: what is in `images/`. A recipe is a list of Debian packages,
//! built by `mmdebstrap`, and layers on top: programs from npm and PyPI, links, environment.
//! Either is kept in the cache under a digest of what went into it.
//!
//! ```text
//!  slim ─┬─ node22, node24        a layer
//!        └─ python3.13            more packages
//!             └─ universal        more packages, and layers
//!                  └─ agent       more of both
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dormouse_control::ImageConfig;
use dormouse_types::hex;
use sha2::{Digest as _, Sha256};

use super::{ImageError, Kitchen, Workplace, io_error};

/// The Debian release of all recipes.
const RELEASE: &str = "trixie";

/// What this code makes of the lines of a layer; another number is another layer.
const FORM: [u8; 1] = [2];

const SETUP: &str = include_str!("../../../../images/setup.sh");

/// A list of Debian packages, with the lists below it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Base {
    name: &'static str,
    lists: &'static [&'static str],
    /// Manuals stay, for who has a program that shows them.
    manuals: bool,
}

/// What comes on top.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    name: &'static str,
    lines: &'static str,
}

macro_rules! packages {
    ($($name:literal),*) => {
        &[$(include_str!(concat!("../../../../images/", $name, "/packages"))),*]
    };
}

macro_rules! layer {
    ($name:literal) => {
        Layer { name: $name, lines: include_str!(concat!("../../../../images/", $name, "/layer")) }
    };
}

static SLIM: Base = Base { name: "slim", lists: packages!["slim"], manuals: false };
static PYTHON: Base = Base { name: "python3.13", lists: packages!["slim", "python3.13"], manuals: false };
static UNIVERSAL: Base =
    Base { name: "universal", lists: packages!["slim", "python3.13", "universal"], manuals: true };
static AGENT: Base =
    Base { name: "agent", lists: packages!["slim", "python3.13", "universal", "agent"], manuals: true };

static NODE_22: Layer = layer!("node22");
static NODE_24: Layer = layer!("node24");
static TOOLS: Layer = layer!("universal");
static DRIVERS: Layer = layer!("agent");

/// A recipe of this release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    name: &'static str,
    base: &'static Base,
    layers: &'static [&'static Layer],
}

const RECIPES: [Recipe; 6] = [
    Recipe { name: "universal", base: &UNIVERSAL, layers: &[&NODE_24, &TOOLS] },
    Recipe { name: "slim", base: &SLIM, layers: &[] },
    Recipe { name: "node22", base: &SLIM, layers: &[&NODE_22] },
    Recipe { name: "node24", base: &SLIM, layers: &[&NODE_24] },
    Recipe { name: "python3.13", base: &PYTHON, layers: &[] },
    Recipe { name: "agent", base: &AGENT, layers: &[&NODE_24, &TOOLS, &DRIVERS] },
];

/// Search path of every command: where the user installs, where the platform's clients look,
/// and the system's own.
const SEARCH_PATH: &str = "/home/ubuntu/.local/bin:/home/ubuntu/.npm-global/bin:/home/ubuntu/.cargo/bin:\
    /home/ubuntu/go/bin:/home/ubuntu/.bun/bin:/home/ubuntu/.local/share/pnpm/bin:/vercel/bin:\
    /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// No recipe has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no recipe {0:?}; there are {names}", names = Recipe::names().join(", "))]
pub struct UnknownRecipe(String);

impl std::str::FromStr for Recipe {
    type Err = UnknownRecipe;

    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        RECIPES.into_iter().find(|recipe| recipe.name == name).ok_or_else(|| UnknownRecipe(name.to_owned()))
    }
}

/// Lines that are neither empty nor comments.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A line of a layer.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// The files of an npm package go below a directory.
    Npm(&'a str, &'a str),
    /// The programs of a wheel go into a directory.
    Pypi(&'a str, &'a str),
    /// A symbolic link.
    Link(&'a str, &'a str),
    /// An empty file.
    File(&'a str),
    /// A program that is another with arguments.
    Script(&'a str, &'a str),
    /// A variable of every command.
    Env(&'a str, &'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self, ImageError> {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("npm"), Some(package), Some(place)) => Ok(Self::Npm(package, place)),
            (Some("pypi"), Some(package), Some(place)) => Ok(Self::Pypi(package, place)),
            (Some("link"), Some(path), Some(target)) => Ok(Self::Link(path, target)),
            (Some("file"), Some(path), None) => Ok(Self::File(path)),
            (Some("script"), Some(path), Some(command)) => Ok(Self::Script(path, command)),
            (Some("env"), Some(name), Some(value)) => Ok(Self::Env(name, value)),
            _ => Err(ImageError::Invalid(format!("{line:?} is no line of a layer"))),
        }
    }
}

/// A file of apt's that says where packages come from.
#[derive(Debug, Clone)]
pub(super) struct AptSources {
    /// Its form is told by the ending.
    name: std::ffi::OsString,
    text: String,
}

impl AptSources {
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let text = fs::read_to_string(path).map_err(io_error(format!("read {}", path.display())))?;
        Ok(Self { name: path.file_name().unwrap_or_default().to_owned(), text })
    }

    fn copy_to(&self, work: &Path) -> Result<PathBuf, ImageError> {
        let copy = work.join(&self.name);
        fs::write(&copy, &self.text).map_err(io_error(format!("write {}", copy.display())))?;
        Ok(copy)
    }
}

/// A part of a recipe that has an archive of its own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Base(&'static Base),
    Layer(&'static Layer),
}

impl Recipe {
    /// The one of the default image.
    pub const DEFAULT: Self = RECIPES[0];

    /// Names of all recipes.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        RECIPES.iter().map(|recipe| recipe.name).collect()
    }

    /// Its name, which is also that of the runtime that it gives.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The parts that make it, lowest first.
    pub(super) fn parts(self) -> Vec<Part> {
        let layers = self.layers.iter().map(|layer| Part::Layer(layer));
        std::iter::once(Part::Base(self.base)).chain(layers).collect()
    }

    /// What every command gets of it.
    pub(super) fn config(self) -> Result<ImageConfig, ImageError> {
        let mut env = BTreeMap::from([("PATH".to_owned(), SEARCH_PATH.to_owned())]);
        for line in self.layers.iter().flat_map(|layer| entries(layer.lines)) {
            if let Line::Env(name, value) = Line::parse(line)? {
                env.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(ImageConfig { env, ..ImageConfig::default() })
    }

    /// Changes with everything that goes into the result.
    pub(super) fn digest(self, sources: Option<&AptSources>) -> String {
        let digest = self
            .parts()
            .into_iter()
            .fold(Sha256::new(), |digest, part| digest.chain_update(part.digest(sources)));
        hex(&digest.chain_update(SEARCH_PATH).finalize()[..8])
    }
}

impl Part {
    /// Changes with everything that goes into its archive.
    fn digest(self, sources: Option<&AptSources>) -> String {
        let digest = match self {
            Self::Base(base) => {
                let digest = base.lists.iter().fold(Sha256::new(), |digest, list| digest.chain_update(list));
                digest
                    .chain_update(SETUP)
                    .chain_update(SEARCH_PATH)
                    .chain_update(RELEASE)
                    .chain_update([u8::from(base.manuals)])
                    .chain_update(sources.map_or("", |given| &given.text))
            }
            Self::Layer(layer) => Sha256::new().chain_update(FORM).chain_update(layer.lines),
        };
        hex(&digest.finalize()[..8])
    }

    /// A tar of it, from the cache or built.
    pub(super) fn tar(self, kitchen: &Kitchen, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
        let Kitchen { cache, sources } = kitchen;
        fs::create_dir_all(cache).map_err(io_error(format!("make {}", cache.display())))?;
        let name = match self {
            Self::Base(base) => format!("{}-base", base.name),
            Self::Layer(layer) => format!("{}-layer", layer.name),
        };
        let path = cache.join(format!("{name}-{}.tar", self.digest(sources.as_ref())));
        if path.exists() {
            progress(&format!("taking {name} from the cache"));
            return Ok(path);
        }
        let workplace = Workplace::new(cache)?;
        let tar = match self {
            Self::Base(base) => debian(base, sources.as_ref(), &workplace.path, progress)?,
            Self::Layer(layer) => layer.build(&workplace.path, progress)?,
        };
        fs::rename(tar, &path).map_err(io_error("keep the built tar"))?;
        // What an earlier release made of it is of no more use.
        for entry in fs::read_dir(cache).map_err(io_error(format!("list {}", cache.display())))?.flatten() {
            let file = entry.file_name();
            let digest = file
                .to_str()
                .and_then(|file| file.strip_prefix(&name)?.strip_prefix('-')?.strip_suffix(".tar"));
            if digest.is_some_and(|digest| digest.len() == 16) && entry.path() != path {
                fs::remove_file(entry.path())
                    .map_err(io_error(format!("remove {}", entry.path().display())))?;
            }
        }
        Ok(path)
    }
}

fn debian(
    base: &Base,
    given: Option<&AptSources>,
    work: &Path,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, ImageError> {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = work.join("setup.sh");
    fs::write(&setup, SETUP).map_err(io_error("write setup.sh"))?;
    fs::set_permissions(&setup, fs::Permissions::from_mode(0o755)).map_err(io_error("write setup.sh"))?;
    let packages: Vec<&str> = base.lists.iter().flat_map(|list| entries(list)).collect();
    let left_out = ["doc", "locale", "info"].into_iter().chain((!base.manuals).then_some("man"));
    let tar = work.join("root.tar");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages \"none\""])
        .args(left_out.map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")))
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!("--customize-hook={} \"$1\" {SEARCH_PATH}", setup.display()))
        .arg(RELEASE)
        .arg(&tar);
    let sources = match given {
        Some(given) => Some(given.copy_to(work)?),
        None => sources(RELEASE, work)?,
    };
    command.args(sources);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io_error("run mmdebstrap (apt-get install mmdebstrap)"))?;
    let mut last = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in io::BufRead::lines(io::BufReader::new(stderr)).map_while(Result::ok) {
            if let Some(step) = line.strip_prefix("I: ") {
                progress(step);
            }
            last.push(line);
            if last.len() > 20 {
                last.remove(0);
            }
        }
    }
    let status = child.wait().map_err(io_error("wait for mmdebstrap"))?;
    if status.success() {
        Ok(tar)
    } else {
        Err(ImageError::Invalid(format!("mmdebstrap failed ({status}):\n{}", last.join("\n"))))
    }
}

/// The host's own Debian mirror, where it names one, for `release`. A host of
/// another release names the same mirror.
fn sources(release: &str, work: &Path) -> Result<Option<PathBuf>, ImageError> {
    let known = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"].map(PathBuf::from);
    let Some(path) = known.into_iter().find(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 0))
    else {
        return Ok(None);
    };
    let mut found = AptSources::read(&path)?;
    let host = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let own = host.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    if let Some(own) = own.map(|own| own.trim_matches('"')).filter(|own| *own != release) {
        found.text = found.text.replace(own, release);
    }
    found.copy_to(work).map(Some)
}

impl Layer {
    fn build(&self, work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
        let path = work.join("layer.tar");
        let file = File::create(&path).map_err(io_error("write the layer's tar"))?;
        let mut layer = tar::Builder::new(io::BufWriter::new(file));
        let failed = || io_error("write the layer's tar");
        for line in entries(self.lines) {
            match Line::parse(line)? {
                Line::Npm(package, place) => {
                    progress(&format!("fetching {package}"));
                    let archive = fetch(package, work)?;
                    let packed = repack(&archive, Path::new(place), &mut layer);
                    packed.map_err(io_error(format!("read {package}")))?;
                }
                Line::Pypi(package, place) => {
                    progress(&format!("fetching {package}"));
                    for program in programs(package, work)? {
                        let named = || io_error(format!("read {}", program.display()));
                        let mut file = File::open(&program).map_err(named())?;
                        let mut header = owned_by_root(tar::EntryType::Regular, 0o755);
                        header.set_size(file.metadata().map_err(named())?.len());
                        let inside = Path::new(place).join(program.file_name().unwrap_or_default());
                        layer.append_data(&mut header, inside, &mut file).map_err(failed())?;
                    }
                }
                Line::Link(link, target) => {
                    let mut header = owned_by_root(tar::EntryType::Symlink, 0o777);
                    layer.append_link(&mut header, link, target).map_err(failed())?;
                }
                Line::File(path) => {
                    let mut header = owned_by_root(tar::EntryType::Regular, 0o644);
                    layer.append_data(&mut header, path, io::empty()).map_err(failed())?;
                }
                Line::Script(path, command) => {
                    let text = format!("#!/bin/sh\nexec {command} \"$@\"\n");
                    let mut header = owned_by_root(tar::EntryType::Regular, 0o755);
                    header.set_size(text.len() as u64);
                    layer.append_data(&mut header, path, text.as_bytes()).map_err(failed())?;
                }
                Line::Env(..) => {}
            }
        }
        layer.into_inner().map_err(failed())?;
        Ok(path)
    }
}

/// The programs of a wheel: its `data/scripts` (PEP 427). pip checks it against what the
/// registry says of it.
fn programs(package: &str, work: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let dir = work.join(package.replace(['=', '/'], "-"));
    let python = |args: &[&str]| {
        // Debian's, whatever else a shell of this host finds first.
        let output = Command::new("/usr/bin/python3")
            .args(args)
            .arg(&dir)
            .current_dir(work)
            .stdin(Stdio::null())
            .output()
            .map_err(io_error("run python3 (apt-get install python3-pip)"))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ImageError::Invalid(format!("fetch {package}: python3 failed ({}):\n{words}", output.status)))
    };
    let only = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"];
    // For the machines that the image is for, whatever this one is.
    let of_image = ["--platform", "manylinux2014_x86_64", "--python-version", "3.13", package, "--dest"];
    python(&[&only[..], &of_image[..]].concat())?;
    let named = || io_error(format!("read {}", dir.display()));
    let wheels: Vec<PathBuf> = fs::read_dir(&dir).map_err(named())?.flatten().map(|e| e.path()).collect();
    let wheel = wheels.first().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    python(&["-m", "zipfile", "-e", &wheel])?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(named())?.flatten() {
        let scripts = entry.path().join("scripts");
        if entry.file_name().to_string_lossy().ends_with(".data") && scripts.is_dir() {
            found.extend(fs::read_dir(&scripts).map_err(named())?.flatten().map(|entry| entry.path()));
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(ImageError::Invalid(format!("{package} has no programs")));
    }
    Ok(found)
}

/// The package's archive, checked by npm against what the registry says of it.
fn fetch(package: &str, work: &Path) -> Result<PathBuf, ImageError> {
    let output = Command::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(work)
        .arg(package)
        .current_dir(work)
        .stdin(Stdio::null())
        .output()
        .map_err(io_error("run npm (apt-get install npm)"))?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let archive = work.join(&name);
    if output.status.success() && !name.is_empty() && archive.is_file() {
        return Ok(archive);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(ImageError::Invalid(format!("npm pack {package} failed ({}):\n{}", output.status, words.trim())))
}

fn owned_by_root(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// What names of programs for other machines have in them, which some packages bring along.
const OTHER_MACHINES: [&str; 4] = ["-darwin-", "-win32-", "-linux-arm64", "-linux-musl-"];

/// Puts the files of an npm package below `place`. Packages hold plain files,
/// in a directory of their own.
fn repack(archive: &Path, place: &Path, layer: &mut tar::Builder<impl io::Write>) -> io::Result<()> {
    let file = io::BufReader::new(File::open(archive)?);
    for entry in tar::Archive::new(flate2::bufread::GzDecoder::new(file)).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inner: PathBuf = entry.path()?.components().skip(1).collect();
        if OTHER_MACHINES.iter().any(|machine| inner.to_string_lossy().contains(machine)) {
            continue;
        }
        // npm makes what a package calls its programs executable when it installs them: here
        // that is every script, and every program of Linux.
        let mut start = Vec::new();
        entry.by_ref().take(2).read_to_end(&mut start)?;
        let runs = entry.header().mode()? & 0o100 != 0 || [&b"#!"[..], b"\x7fE"].contains(&start.as_slice());
        let mut header = owned_by_root(tar::EntryType::Regular, if runs { 0o755 } else { 0o644 });
        header.set_size(entry.size());
        layer.append_data(&mut header, place.join(inner), start.as_slice().chain(&mut entry))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_have_names_and_digests_of_their_own() {
        let mut digests: Vec<_> = RECIPES.iter().map(|recipe| recipe.digest(None)).collect();
        // Another archive gives other packages.
        let day = AptSources {
            name: "day.list".into(),
            text: "deb http://archive.test/20260101 trixie main".to_owned(),
        };
        digests.extend(RECIPES.iter().map(|recipe| recipe.digest(Some(&day))));
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 2 * RECIPES.len());
        for recipe in RECIPES {
            assert_eq!(recipe.name.parse(), Ok(recipe));
            for layer in recipe.layers {
                for line in entries(layer.lines) {
                    let line = Line::parse(line).unwrap();
                    // What is fetched has a version.
                    assert!(match line {
                        Line::Npm(package, _) => package[1..].contains('@'),
                        Line::Pypi(package, _) => package.contains("=="),
                        _ => true,
                    });
                }
            }
        }
        let unknown = "node18".parse::<Recipe>().unwrap_err().to_string();
        assert!(unknown.contains("node22"), "{unknown}");
    }

    #[test]
    fn the_environment_is_that_of_the_layers() {
        let agent = "agent".parse::<Recipe>().unwrap().config().unwrap();
        assert_eq!(agent.env["CHROME_BIN"], "/usr/bin/chromium");
        assert!(agent.env["PATH"].contains("/home/ubuntu/.local/bin:"));
        assert!(!Recipe::DEFAULT.config().unwrap().env.contains_key("CHROME_BIN"));
        assert!(Line::parse("wget x").is_err() && Line::parse("npm x").is_err());
    }
}
