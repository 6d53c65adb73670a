//! The data directory, and which version's it is.

use std::path::Path;

use anyhow::Context as _;

/// What a data directory of this version says in its `format` file.
const FORMAT: &str = "dormouse 3\n";

/// Makes the data directory, which only root may enter.
///
/// # Errors
/// Where it holds what this version does not read.
pub(crate) fn prepare_data_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("protect {}", dir.display()))?;
    let path = dir.join("format");
    match std::fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => return Ok(()),
        Ok(found) => anyhow::bail!(
            "{} was made by another version of dormouse ({}), whose data this one does not read",
            dir.display(),
            found.trim()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    anyhow::ensure!(
        !dir.join("dormouse.db").exists(),
        "{} was made by a dormouse from before its first release, which kept sandboxes in another way; \
         nothing is taken over: stop that version with its own `dormouse evacuate`, move the directory away \
         and start anew",
        dir.display()
    );
    dormouse_node::write_durably(&path, FORMAT).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::prepare_data_dir;

    #[test]
    fn a_data_directory_of_another_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        prepare_data_dir(dir.path()).unwrap();
        std::fs::write(dir.path().join("dormouse.db"), "").unwrap();
        prepare_data_dir(dir.path()).unwrap();
        std::fs::write(dir.path().join("format"), "dormouse 4\n").unwrap();
        assert!(prepare_data_dir(dir.path()).unwrap_err().to_string().contains("dormouse 4"));
        std::fs::remove_file(dir.path().join("format")).unwrap();
        let error = prepare_data_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("before its first release"), "{error}");
    }
}
