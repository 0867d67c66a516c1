//! The way out of a flow, put into words.

use std::net::Ipv4Addr;

use xdp::address::{Key, V4};
use xdp::tables::{Route, Tables};
use xdp_abi::forward::{Attachment, port};
use xdp_abi::reason::Reason;

use super::Told;

/// The attachment that a packet leaves by.
pub(super) struct Ahead {
    pub(super) number: u16,
    pub(super) attachment: Attachment,
}

/// Why there is no way out.
pub(super) struct NoWay {
    /// Under which reason a packet is dropped.
    pub(super) reason: Reason,
    pub(super) text: String,
}

impl<T: Tables<A = V4>> Told<'_, T> {
    /// The way out of a flow that comes in by interface `from`, as the kernel would route it.
    pub(super) fn exit(&mut self, from: u32, key: &Key<V4>) -> Result<Ahead, NoWay> {
        let destination = Ipv4Addr::from(key.destination.0);
        let route = self.tables.route(from, key.source, key.destination);
        let (ifindex, gateway) = match route {
            Route::Via { ifindex, gateway, .. } => (ifindex, Ipv4Addr::from(gateway)),
            Route::Unreachable => {
                let text = format!("the kernel knows no way to {destination}");
                return Err(NoWay { reason: Reason::NoRoute, text });
            }
            Route::Failed => {
                let text = format!(
                    "the kernel does not say how {destination} is reached; most often because it does \
                     not forward (`net.ipv4.ip_forward`)"
                );
                return Err(NoWay { reason: Reason::HelperFailed, text });
            }
        };
        let link = self.tables.link(ifindex);
        let number = link.and_then(|link| {
            self.tables.attachment_towards(port(link.parent, link.vlan), key.destination)
        });
        let ahead = number.and_then(|number| Some((number, self.tables.attachment(number)?)));
        let Some((number, attachment)) = ahead else {
            let text = format!(
                "the kernel routes to {gateway} by interface {}, where no attachment has \
                 {destination} ahead",
                self.interface_name(ifindex)
            );
            return Err(NoWay { reason: Reason::NoEgress, text });
        };
        self.leaves(number, &attachment, gateway, destination);
        Ok(Ahead { number, attachment })
    }

    /// A way out, as a step.
    pub(super) fn leaves(
        &mut self,
        number: u16,
        attachment: &Attachment,
        gateway: Ipv4Addr,
        destination: Ipv4Addr,
    ) {
        let by = if gateway == destination {
            "directly".to_owned()
        } else {
            format!("through {gateway}")
        };
        let text = format!(
            "it leaves {by} by {}, into domain {}",
            self.attachment_name(number),
            self.names.domain(attachment.domain),
        );
        self.step("route", text);
    }
}
