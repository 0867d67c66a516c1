//! Whether the kernel gives routes for what comes in: it gives none to a machine that does not forward.

use super::Loop;
use crate::{config::Config, interfaces, net::Sysctl, serve::Condition};
use tracing::{info, warn};

impl Loop {
    /// Looks whether the kernel forwards, and says what follows if it does not.
    pub(super) fn look_at_forwarding(&mut self) {
        let problems = problems(&Sysctl::of_kernel(), self.engine.config());
        for problem in problems.iter().filter(|problem| !self.not_forwarded.contains(problem)) {
            warn!("{problem}");
        }
        if problems.is_empty() && !self.not_forwarded.is_empty() {
            info!("the kernel forwards what comes in by every attachment");
        }
        self.not_forwarded.clone_from(&problems);
        self.state.readiness.set(Condition::Forwarding, problems);
    }
}

/// What is wrong, a sentence each. Of an interface that is missing others speak.
fn problems(sysctl: &Sysctl, config: &Config) -> Vec<String> {
    let said = |setting: &str, flows: &str| {
        format!(
            "`{setting}` is 0: the kernel gives no routes, {flows} are dropped as helper_failed"
        )
    };
    if sysctl.ip_forward().is_ok_and(|forwards| !forwards) {
        return vec![said("net.ipv4.ip_forward", "new flows")];
    }
    let closed = |device: &String| sysctl.forwarding(device).is_ok_and(|forwards| !forwards);
    interfaces::devices(config)
        .into_iter()
        .filter(closed)
        .map(|device| {
            let flows = format!("new flows that come in by `{device}`");
            said(&format!("net/ipv4/conf/{device}/forwarding"), &flows)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};
    use crate::net::testing::scratch_directory;
    use std::fs;

    #[test]
    fn whatever_is_not_forwarded_is_named() {
        let config = testing::scene(TWO_CLUSTERS).config;
        let device = config.gateway.attachments[0].device();
        let scratch = scratch_directory();
        let sysctl = Sysctl::below(scratch.path());
        assert_eq!(problems(&sysctl, &config), [""; 0], "nothing can be read, nothing is said");
        let of_device = scratch.path().join("net/ipv4/conf").join(&device);
        fs::create_dir_all(&of_device).unwrap();
        let set = |all: &str, own: &str| {
            fs::write(scratch.path().join("net/ipv4/ip_forward"), all).unwrap();
            fs::write(of_device.join("forwarding"), own).unwrap();
            problems(&sysctl, &config)
        };
        assert_eq!(set("1\n", "1\n"), [""; 0]);
        let [only] = &set("1\n", "0\n")[..] else { panic!("one interface") };
        let said = format!(
            "`net/ipv4/conf/{device}/forwarding` is 0: the kernel gives no routes, new flows that come in \
             by `{device}` are dropped as helper_failed"
        );
        assert_eq!(*only, said);
        let [only] = &set("0\n", "0\n")[..] else { panic!("one setting") };
        assert!(only.starts_with("`net.ipv4.ip_forward` is 0"), "{only}");
    }
}
