//! Formats by file name, and the paths in parent locators.

use std::path::{Component, Path, PathBuf};

use crate::error::{DiskError, IoContext, Result};
use crate::types::{Format, ParentInfo};

impl Format {
    /// The format that a file's name tells. The contents are never asked: a guest that writes
    /// another format's signature into its raw disk must not change how the host reads it.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] when the name tells nothing.
    pub fn of_path(path: &Path) -> Result<Self> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "vhdx" | "avhdx" => Ok(Self::Vhdx),
            "vhd" | "avhd" => Ok(Self::Vhd),
            "raw" | "img" | "iso" => Ok(Self::Raw),
            _ if path.starts_with("/dev") => Ok(Self::Raw),
            _ => {
                let path = path.display();
                let reason = format!("the name {path} does not tell the disk's format; state it");
                Err(DiskError::Invalid(reason))
            }
        }
    }
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A parent's paths as a locator has them.
pub(super) struct LocatorPaths {
    /// From the child's folder, in the format's own notation (`.\folder\parent.vhdx`).
    pub(super) relative: String,
    /// This host's absolute path.
    pub(super) absolute: String,
    /// The file name alone.
    pub(super) name: String,
}

/// Names `parent` as seen from `child`, which need not exist yet.
pub(super) fn locator_paths(child: &Path, parent: &Path) -> Result<LocatorPaths> {
    let parent = parent.canonicalize().on("find", parent)?;
    let base = folder(child).canonicalize().on("find", folder(child))?;
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            DiskError::invalid(format!("the path {} is not valid text", path.display()))
        })
    };
    let shared = base
        .components()
        .zip(parent.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = base.components().count() - shared;
    let mut parts = vec![if up == 0 {
        ".".to_owned()
    } else {
        vec![".."; up].join("\\")
    }];
    for component in parent.components().skip(shared) {
        parts.push(text(Path::new(component.as_os_str()))?);
    }
    let name = parts.last().cloned().unwrap_or_default();
    Ok(LocatorPaths {
        relative: parts.join("\\"),
        absolute: text(&parent)?,
        name,
    })
}

/// Where the parent of `child` may be, best first: the relative path, the absolute one, and the
/// same name in the child's folder (for files that were moved together).
pub(super) fn candidates(child: &Path, info: &ParentInfo) -> Vec<PathBuf> {
    let base = folder(child);
    let mut found: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        // Without `.` in the middle, for people who read it.
        let path: PathBuf = path.components().collect();
        if !found.contains(&path) {
            found.push(path);
        }
    };
    if let Some(relative) = &info.relative_path {
        add(base.join(relative.replace('\\', "/")));
        add(base.join(relative.trim_start_matches(".\\")));
    }
    if let Some(absolute) = info.absolute_path.as_ref().filter(|p| p.starts_with('/')) {
        add(PathBuf::from(absolute));
    }
    for path in [&info.relative_path, &info.absolute_path]
        .into_iter()
        .flatten()
    {
        let name = path.rsplit(['\\', '/']).next().unwrap_or_default();
        if matches!(
            Path::new(name).components().next(),
            Some(Component::Normal(_))
        ) {
            add(base.join(name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_come_from_names_only() {
        let of = |name: &str| Format::of_path(Path::new(name)).ok();
        assert_eq!(of("a.VHDX"), Some(Format::Vhdx));
        assert_eq!(of("a.avhdx"), Some(Format::Vhdx));
        assert_eq!(of("b.vhd"), Some(Format::Vhd));
        assert_eq!(of("b.img"), Some(Format::Raw));
        assert_eq!(of("/dev/vdb"), Some(Format::Raw));
        assert_eq!(of("disk"), None);
    }

    #[test]
    fn relative_paths_lead_back_to_the_parent() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("folders");
        std::fs::create_dir_all(dir.path().join("c")).expect("folders");
        let parent = dir.path().join("c/dad.vhdx");
        std::fs::write(&parent, "x").expect("parent");
        for (child, expected) in [
            ("a/b/kid.vhdx", "..\\..\\c\\dad.vhdx"),
            ("c/kid.vhdx", ".\\dad.vhdx"),
        ] {
            let child = dir.path().join(child);
            let paths = locator_paths(&child, &parent).expect("paths");
            assert_eq!(paths.relative, expected);
            assert_eq!(paths.name, "dad.vhdx");
            let info = ParentInfo {
                relative_path: Some(paths.relative),
                ..ParentInfo::default()
            };
            let first = candidates(&child, &info)[0].canonicalize().expect("exists");
            assert_eq!(first, parent.canonicalize().expect("exists"));
        }
    }

    #[test]
    fn windows_paths_fall_back_to_the_name() {
        let info = ParentInfo {
            absolute_path: Some("\\\\?\\C:\\disks\\dad.vhdx".into()),
            ..ParentInfo::default()
        };
        assert_eq!(
            candidates(Path::new("/vm/kid.vhdx"), &info),
            [Path::new("/vm/dad.vhdx")]
        );
    }
}
