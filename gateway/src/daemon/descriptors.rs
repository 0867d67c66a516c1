//! File descriptors: enough for the daemon's own work, whoever is connected to it.
//!
//! Maps, programs and links take a few each, netlink sockets come and go with every look at the
//! guard. Without a descriptor for them the daemon can neither mend the guard nor say so.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// All that the daemon's servers may hold at once (`crate::http`: 256), and enough for its own work.
const ENOUGH: u64 = 1024;

/// Takes as many descriptors as the system lets this process have; the usual limit is far lower, for
/// the sake of programs that use `select`.
pub(super) fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        Ok(most)
    });
    match raised {
        Ok(most) if most < ENOUGH => {
            warn!("this process may open {most} files; give it {ENOUGH} or more (LimitNOFILE)");
        }
        Ok(_) => {}
        Err(error) => warn!(%error, "the limit of open files cannot be raised"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
        let limits = || getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let (_, most) = limits();
        setrlimit(Resource::RLIMIT_NOFILE, most - 1, most).unwrap();
        raise();
        assert_eq!(limits(), (most, most));
    }
}
