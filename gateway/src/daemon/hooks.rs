//! Programs on their interfaces: put back there if somebody takes one off, and shown to whoever asks.
//!
//! Without its program an interface is the kernel's, and the last guard drops what that would forward:
//! nothing passes there. So a program that is gone is put back at once, whoever took it off: who wants
//! it gone stops the gateway and has `detach` do it.

use super::{Loop, with_causes};
use crate::{interfaces, serve::Condition};
use tracing::{error, info, warn};

impl Loop {
    /// Looks whether every program is where it belongs, and puts it back.
    pub(super) fn restore(&mut self) {
        let (gone, outcome) = self.engine.restore();
        if gone.is_empty() {
            return;
        }
        let missing = self.engine.missing();
        for place in gone.iter().filter(|place| !missing.contains(place)) {
            let (interface, hook) = (&place.interface, place.hook);
            warn!(interface, hook, "there was no program any more; it is attached again");
            self.state.count_attached_again();
        }
        // It is tried again each time, and said when it changes.
        let refused = outcome.err().map(|failed| with_causes(&failed));
        if let Some(refused) =
            refused.as_ref().filter(|refused| self.refused.as_ref() != Some(refused))
        {
            error!("{refused}");
        }
        self.refused = refused;
        self.show_places();
    }

    /// Shows everybody else which interfaces are served, and what is wrong with that.
    pub(super) fn show_places(&mut self) {
        let places = self.engine.places();
        let missing = self.engine.missing();
        let switched_off = interfaces::switched_off(places, &self.follower.state());
        let unsuited = interfaces::veths_on_xdp(places, &self.follower.state());
        for interface in unsuited.difference(&self.unsuited) {
            warn!(
                %interface,
                "XDP on a veth needs `ethtool -K PEER tx off txvlan off gro on` at its other end, where its \
                 kernel sends; `hook: tc` needs nothing"
            );
        }
        self.unsuited = unsuited;
        let mut problems: Vec<String> =
            places.missing.iter().map(|missing| missing.fault.clone()).collect();
        problems.extend(switched_off.iter().map(|interface| {
            format!(
                "`{interface}` is switched off (`ip link set {interface} up`): no packets there"
            )
        }));
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        for interface in self.switched_off.difference(&switched_off) {
            let is_there = self.follower.state().links.values().any(|link| link.name == *interface);
            if is_there {
                info!(%interface, "it is switched on again");
            }
        }
        self.switched_off = switched_off;
        problems.extend(
            missing
                .iter()
                .map(|place| format!("`{}` has no program at {}", place.interface, place.hook)),
        );
        if !missing.is_empty() {
            problems.extend(self.refused.clone());
        }
        if problems.is_empty() && !self.problems.is_empty() {
            info!("every interface is there and has its programs");
        }
        self.problems.clone_from(&problems);
        self.state.readiness.set(Condition::Attached, problems);
        self.state.set_served(places.interfaces.clone(), missing);
        let names = places.interfaces.iter().map(|(ifindex, (name, _))| (*ifindex, name.clone()));
        self.capture.set_interfaces(names.collect());
    }
}
