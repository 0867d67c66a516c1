//! What the file names on this machine.
//!
//! Whoever runs meets it by itself, and tries again; `check` says it beforehand. A reload is not
//! kept back by it: what a daemon has read once may be gone since.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Config, ConfigError};

impl Config {
    /// What is not there, or not what it should be. What may not be looked at is not known.
    #[must_use]
    pub fn look_at_files(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| {
            faults.push(self.fault(&format!("gateway.{field}"), message));
        };
        let metrics = &self.gateway.metrics;
        let tls = metrics.tls.as_ref();
        for (field, path) in [
            ("metrics.tls.certificate", tls.map(|tls| &tls.certificate)),
            ("metrics.tls.key", tls.map(|tls| &tls.key)),
            ("metrics.token_file", metrics.token_file.as_ref()),
        ] {
            let Some(path) = path else { continue };
            let name = field.rsplit('.').next().unwrap_or(field);
            match fs::metadata(path) {
                Ok(found) if found.is_file() => {}
                Ok(_) => fault(field, format!("`{name}` is {}, which is no file", path.display())),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                Err(error) => fault(field, format!("`{name}` is {}: {error}", path.display())),
            }
        }
        if let Some(log) = self.gateway.flow_log.as_ref().filter(|log| log.path.is_dir()) {
            let message = format!(
                "`path` is {}, which is a directory; expected a file in it",
                log.path.display()
            );
            fault("flow_log.path", message);
        }
        faults
    }

    /// That records would be written into the file of this configuration.
    #[must_use]
    pub fn writes_into(&self, file: &Path) -> Option<ConfigError> {
        let log = &self.gateway.flow_log.as_ref()?.path;
        let found = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        if found(log)? != found(file)? {
            return None;
        }
        let message = format!(
            "`path` is {}, which is this file; expected a file for records alone",
            log.display()
        );
        Some(self.fault("gateway.flow_log.path", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::scratch_directory;

    fn parsed(settings: &str) -> Config {
        let text = format!(
            "gateway:
  name: gw-1
  attachments: [{{ name: internet, interface: eth0, kind: internet }}]
{settings}documents:
  - {{ kind: DefaultAction, name: default, spec: {{ action: deny }} }}
"
        );
        Config::parse(&text, "f.yaml").unwrap()
    }

    #[test]
    fn files_that_are_named_are_looked_for() {
        let scratch = scratch_directory();
        let [file, directory, nowhere] =
            ["file", "directory", "nowhere"].map(|name| scratch.path().join(name));
        fs::write(&file, "").unwrap();
        fs::create_dir(&directory).unwrap();
        let looked = |certificate: &Path, key: &Path, token: &Path, log: &Path| {
            let text = format!(
                "  metrics:
    tls:
      certificate: {}
      key: {}
    token_file: {}
  flow_log:
    path: {}
",
                certificate.display(),
                key.display(),
                token.display(),
                log.display()
            );
            let faults = parsed(&text).look_at_files();
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(looked(&file, &file, &file, &file), [""; 0]);
        assert_eq!(looked(&file, &file, &file, &nowhere), [""; 0], "a log is made");
        let there = |path: &Path| path.display().to_string();
        assert_eq!(
            looked(&nowhere, &directory, &nowhere, &directory),
            [
                format!(
                    "f.yaml:6:7: gateway.metrics.tls.certificate: `certificate` is {}: No such file or \
                     directory (os error 2)",
                    there(&nowhere)
                ),
                format!(
                    "f.yaml:7:7: gateway.metrics.tls.key: `key` is {}, which is no file",
                    there(&directory)
                ),
                format!(
                    "f.yaml:8:5: gateway.metrics.token_file: `token_file` is {}: No such file or \
                     directory (os error 2)",
                    there(&nowhere)
                ),
                format!(
                    "f.yaml:10:5: gateway.flow_log.path: `path` is {}, which is a directory; expected \
                     a file in it",
                    there(&directory)
                ),
            ]
        );
    }

    #[test]
    fn a_configuration_is_no_flow_log() {
        let scratch = scratch_directory();
        let [file, link, other] = ["file", "link", "other"].map(|name| scratch.path().join(name));
        for path in [&file, &other] {
            fs::write(path, "").unwrap();
        }
        fs::hard_link(&file, &link).unwrap();
        for (log, refused) in [(&file, true), (&link, true), (&other, false)] {
            let config = parsed(&format!("  flow_log: {{ path: {} }}\n", log.display()));
            let said = config.writes_into(&file).map(|fault| fault.to_string());
            assert_eq!(said.is_some(), refused, "{said:?}");
            let place = "f.yaml:4:15: gateway.flow_log.path: `path` is ";
            assert!(said.is_none_or(|said| said.starts_with(place)));
        }
    }
}
