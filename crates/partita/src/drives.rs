//! `--disk FILE[,ro][,controller=N][,lun=N]` and `--dvd [FILE][,controller=N][,lun=N]`.

use std::path::PathBuf;

use vmwp::{DiskConfig, MAX_CONTROLLERS, MAX_LUNS};

/// Reads the value of `--disk`.
pub(crate) fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let (path, options) = split(text);
    if path.is_empty() {
        return Err("no file is named; give FILE[,ro][,controller=N][,lun=N]".to_owned());
    }
    let mut config = DiskConfig::disk(PathBuf::from(path));
    for option in options {
        match option.as_str() {
            "ro" => config.read_only = true,
            other => place(&mut config, other)?,
        }
    }
    Ok(config)
}

/// Reads the value of `--dvd`; without a file the drive is empty.
pub(crate) fn parse_dvd(text: &str) -> Result<DiskConfig, String> {
    let (path, options) = split(text);
    let path = Some(path).filter(|path| !path.is_empty());
    let mut config = DiskConfig::dvd(path.map(PathBuf::from));
    for option in options {
        place(&mut config, &option)?;
    }
    Ok(config)
}

fn place(config: &mut DiskConfig, option: &str) -> Result<(), String> {
    let number = |value: &str, limit: u32| {
        let number = value.parse().ok().filter(|&number| number < limit);
        number.ok_or_else(|| format!("'{option}' is out of range; give 0 to {}", limit - 1))
    };
    match option.split_once('=') {
        Some(("controller", value)) => config.controller = number(value, MAX_CONTROLLERS)?,
        Some(("lun", value)) => config.lun = Some(number(value, MAX_LUNS.into())? as u8),
        _ => {
            return Err(format!(
                "'{option}' is no option; there are ro (for disks), controller=N and lun=N, and \
                 a comma in a file's name is written twice"
            ));
        }
    }
    Ok(())
}

/// The file and the options behind it. A comma in the file's name is doubled.
fn split(text: &str) -> (String, Vec<String>) {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.peek() != Some(&',') {
            parts.push(String::new());
            continue;
        }
        if character == ',' {
            characters.next();
        }
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    let path = parts.remove(0);
    (path, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_understood() {
        assert_eq!(parse_disk("a.vhdx"), Ok(DiskConfig::disk("a.vhdx".into())));
        let config = parse_disk("a,,b.vhdx,ro,controller=1,lun=63").unwrap();
        assert_eq!(config.path, Some("a,b.vhdx".into()));
        assert!(config.read_only && !config.optical);
        assert_eq!((config.controller, config.lun), (1, Some(63)));
        let config = parse_dvd(",lun=5").unwrap();
        assert!(config.optical && config.path.is_none());
        assert_eq!(config.lun, Some(5));
    }

    #[test]
    fn wrong_ones_are_told() {
        for (text, part) in [
            ("", "no file"),
            (",ro", "no file"),
            ("a,rw", "'rw' is no option"),
            ("a,lun=64", "give 0 to 63"),
            ("a,lun=x", "give 0 to 63"),
            ("a,controller=4", "give 0 to 3"),
            ("a,", "'' is no option"),
        ] {
            let error = parse_disk(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(parse_dvd("a,ro").is_err());
    }
}
