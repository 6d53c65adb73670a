//! Recipes of this release: what is in `images/`. A Debian recipe is a release
//! and a list of packages, built by `mmdebstrap`; an npm recipe is a list of
//! packages on top of the default image, fetched by `npm`. What was built is
//! kept in the cache under a digest of the recipe.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dormouse_types::hex;
use sha2::{Digest as _, Sha256};

use super::{ImageError, Workplace, io_error};

const PACKAGES: &str = include_str!("../../../../images/default/packages");
const SETUP: &str = include_str!("../../../../images/default/setup.sh");

/// A recipe of this release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    name: &'static str,
    method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// A root file system of this Debian release.
    Debian { release: &'static str },
    /// Packages on top of the default image.
    Npm { packages: &'static str },
}

const RECIPES: [Recipe; 4] = [
    Recipe {
        name: "default",
        method: Method::Debian { release: include_str!("../../../../images/default/release") },
    },
    Recipe {
        name: "node22",
        method: Method::Npm { packages: include_str!("../../../../images/node22/npm") },
    },
    Recipe {
        name: "node24",
        method: Method::Npm { packages: include_str!("../../../../images/node24/npm") },
    },
    Recipe {
        name: "python3.13",
        // The release whose own Python it is.
        method: Method::Debian { release: include_str!("../../../../images/python3.13/release") },
    },
];

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

    /// The recipes whose archives make it, lowest first.
    pub(super) fn parts(self) -> Vec<Self> {
        match self.method {
            Method::Debian { .. } => vec![self],
            Method::Npm { .. } => vec![Self::DEFAULT, self],
        }
    }

    /// Changes with everything that goes into the result.
    pub(super) fn digest(self) -> String {
        let digest = match self.method {
            Method::Debian { release } => {
                // The first recipe was made without this line.
                let release = if release.trim() == "bookworm" { "" } else { release };
                Sha256::new().chain_update(PACKAGES).chain_update(SETUP).chain_update(release)
            }
            Method::Npm { packages } => Sha256::new().chain_update(packages),
        };
        hex(&digest.finalize()[..8])
    }

    /// A tar of it, from the cache or built.
    pub(super) fn tar(self, cache: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
        fs::create_dir_all(cache).map_err(io_error(format!("make {}", cache.display())))?;
        let path = cache.join(format!("{}-{}.tar", self.name, self.digest()));
        if path.exists() {
            progress("taking the files from the cache");
            return Ok(path);
        }
        let workplace = Workplace::new(cache)?;
        let tar = match self.method {
            Method::Debian { release } => debian(release.trim(), &workplace.path, progress)?,
            Method::Npm { packages } => npm(packages, &workplace.path, progress)?,
        };
        fs::rename(tar, &path).map_err(io_error("keep the built tar"))?;
        Ok(path)
    }
}

fn debian(release: &str, work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = work.join("setup.sh");
    fs::write(&setup, SETUP).map_err(io_error("write setup.sh"))?;
    fs::set_permissions(&setup, fs::Permissions::from_mode(0o755)).map_err(io_error("write setup.sh"))?;
    let packages: Vec<&str> = entries(PACKAGES).collect();
    let tar = work.join("root.tar");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages \"none\""])
        .args(["doc", "man", "locale", "info"].map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")))
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!("--customize-hook={} \"$1\"", setup.display()))
        .arg(release)
        .arg(&tar);
    if let Some(sources) = sources(release, work)? {
        command.arg(sources);
    }
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
    let text = fs::read_to_string(&path).map_err(io_error(format!("read {}", path.display())))?;
    let host = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let own = host.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let text = match own.map(|own| own.trim_matches('"')) {
        Some(own) if own != release => text.replace(own, release),
        _ => text,
    };
    // Its form is told by the ending.
    let copy = work.join(path.file_name().unwrap_or_default());
    fs::write(&copy, text).map_err(io_error(format!("write {}", copy.display())))?;
    Ok(Some(copy))
}

fn npm(packages: &str, work: &Path, progress: &dyn Fn(&str)) -> Result<PathBuf, ImageError> {
    let path = work.join("layer.tar");
    let file = File::create(&path).map_err(io_error("write the layer's tar"))?;
    let mut layer = tar::Builder::new(io::BufWriter::new(file));
    for entry in entries(packages) {
        let (package, place) = entry
            .split_once(' ')
            .ok_or_else(|| ImageError::Invalid(format!("{entry:?} is not PACKAGE@VERSION PLACE")))?;
        progress(&format!("fetching {package}"));
        let archive = fetch(package, work)?;
        repack(&archive, Path::new(place), &mut layer).map_err(io_error(format!("read {package}")))?;
    }
    for (link, target) in [
        ("usr/local/bin/npm", "../lib/node_modules/npm/bin/npm-cli.js"),
        ("usr/local/bin/npx", "../lib/node_modules/npm/bin/npx-cli.js"),
    ] {
        let mut header = owned_by_root(tar::EntryType::Symlink, 0o777);
        layer.append_link(&mut header, link, target).map_err(io_error("write the layer's tar"))?;
    }
    layer.into_inner().map_err(io_error("write the layer's tar"))?;
    Ok(path)
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
        let runs = entry.header().mode()? & 0o100 != 0;
        let mut header = owned_by_root(tar::EntryType::Regular, if runs { 0o755 } else { 0o644 });
        header.set_size(entry.size());
        layer.append_data(&mut header, place.join(inner), &mut entry)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_have_names_and_digests_of_their_own() {
        let mut digests: Vec<_> = RECIPES.iter().map(|recipe| recipe.digest()).collect();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), RECIPES.len());
        for recipe in RECIPES {
            assert_eq!(recipe.name.parse(), Ok(recipe));
            if let Method::Npm { packages } = recipe.method {
                assert!(entries(packages).all(|entry| entry.split_once(' ').is_some()), "{}", recipe.name);
            }
        }
        let unknown = "node18".parse::<Recipe>().unwrap_err().to_string();
        assert!(unknown.contains("node22"), "{unknown}");
    }
}
