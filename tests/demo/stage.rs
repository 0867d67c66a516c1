//! What the story plays on: the three-legged lab with servers and a gateway at work.

use std::path::PathBuf;

use anyhow::Result;
use lab::daemon::ctl_binary;
use lab::{Config, Daemon, Hook, Lab, Servers};

/// Everything that runs. Gone when it is dropped.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    pub(crate) config: Config,
    _servers: [Servers; 2],
    // The last to be dropped.
    pub(crate) lab: Lab,
}

impl Stage {
    /// Builds it.
    pub(crate) fn set(hook: Hook) -> Result<Self> {
        let lab = Lab::three_legged()?;
        let servers = lab.serve()?;
        let config = Config::new(&lab, hook);
        let daemon = Daemon::start(&lab, &config)?;
        for _ in 0..200 {
            if daemon.stderr().contains("datapath up")
                && lab.site().files().join("sluice.sock").exists()
            {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Ok(Self { daemon, config, _servers: servers, lab })
    }

    /// One that was built otherwise.
    pub(crate) fn of(daemon: Daemon, config: Config, servers: [Servers; 2], lab: Lab) -> Self {
        Self { daemon, config, _servers: servers, lab }
    }

    /// Where the daemon's local API is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.lab.site().files().join("sluice.sock")
    }

    /// What `sluicectl` prints, at most 100 columns wide.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let (program, socket) = (ctl_binary()?, self.socket());
        let (program, socket) = (program.to_string_lossy(), socket.to_string_lossy());
        let words = [&["COLUMNS=100", &*program, "--socket", &*socket], arguments].concat();
        self.lab.gateway.run("env", &words)
    }
}
