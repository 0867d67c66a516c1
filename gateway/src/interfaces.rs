//! Which hook serves each interface, which programs that takes, and which interface may be missing.
//!
//! One that was in force once may go and come back: everything else goes on without it. A name
//! that was never there is taken for a mistake (docs/adr/0014-missing-interfaces.md).

use crate::{
    config::{Attachment, Config, ConfigError, Hook},
    datapath::{
        object::Hooks,
        places::{Missing, Places, Served},
    },
    net::{self, NetworkState, XdpFeatures},
};
use std::collections::{BTreeMap, BTreeSet};

/// Which hook serves each interface. Where it is left to us it is one whose programs are `loaded`, as
/// far as that is possible: before any are, all of them may be.
pub fn served(config: &Config, network: &NetworkState, loaded: Hooks) -> BTreeMap<String, Served> {
    let mut served = BTreeMap::new();
    for attachment in &config.gateway.attachments {
        // Attachments that share an interface share its hook.
        if served.contains_key(&attachment.interface) {
            continue;
        }
        let hook = match attachment.hook {
            Hook::Xdp => Served::Xdp,
            Hook::Tc => Served::Tc,
            Hook::Auto => {
                let link = network.links.values().find(|link| link.name == attachment.interface);
                link.map_or(Served::Tc, |link| {
                    let ask = || net::xdp_features(link.ifindex).ok().flatten();
                    chosen(suitable(link.kind.as_deref(), ask), loaded)
                })
            }
        };
        served.insert(attachment.interface.clone(), hook);
    }
    served
}

/// Which hook suits an interface. A veth hands XDP what its other end has sent, with checksums
/// that it left to a device; the kernel forgets that when it makes a frame for XDP, and all
/// receivers drop them.
fn suitable(kind: Option<&str>, ask: impl FnOnce() -> Option<XdpFeatures>) -> Served {
    if is_veth(kind) {
        return Served::Tc;
    }
    match ask() {
        Some(xdp) if xdp.native && xdp.redirect => Served::Xdp,
        Some(_) | None => Served::Tc,
    }
}

/// TC serves any interface; XDP none that it does not suit, whatever else is not loaded.
fn chosen(suitable: Served, loaded: Hooks) -> Served {
    match suitable {
        Served::Xdp if loaded.xdp => Served::Xdp,
        Served::Xdp | Served::Tc => Served::Tc,
    }
}

fn is_veth(kind: Option<&str>) -> bool {
    kind == Some("veth")
}

/// The interfaces that are served by XDP, as stated, and are a veth.
pub fn veths_on_xdp(places: &Places, network: &NetworkState) -> BTreeSet<String> {
    let is_one = |ifindex: &u32| {
        network.links.get(ifindex).is_some_and(|link| is_veth(link.kind.as_deref()))
    };
    let on_xdp = places.interfaces.iter().filter(|(_, (_, hook))| *hook == Served::Xdp);
    on_xdp.filter(|(ifindex, _)| is_one(ifindex)).map(|(_, (name, _))| name.clone()).collect()
}

/// The attached interfaces, those of VLANs too, that somebody has switched off.
pub fn switched_off(places: &Places, network: &NetworkState) -> BTreeSet<String> {
    let routed = places.attachments.values().map(|attachment| attachment.ifindex);
    let attached = places.interfaces.keys().copied().chain(routed);
    let links = attached.filter_map(|ifindex| network.links.get(&ifindex));
    links.filter(|link| !link.admin_up).map(|link| link.name.clone()).collect()
}

/// The hooks that the interfaces of this moment are served by.
pub fn in_use(places: &Places) -> Hooks {
    let any = |served| places.interfaces.values().any(|(_, hook)| *hook == served);
    Hooks { xdp: any(Served::Xdp), tc: any(Served::Tc) }
}

/// The hooks whose programs are wanted from the start: also of what is missing, whose driver
/// nobody knows yet.
pub fn to_load(config: &Config, places: &Places) -> Hooks {
    let missing = |hook: Hook| {
        config.gateway.attachments.iter().any(|attachment| {
            let device = attachment.device();
            attachment.hook == hook && places.missing.iter().any(|one| one.device == device)
        })
    };
    let now = in_use(places);
    let unknown = missing(Hook::Auto);
    Hooks {
        xdp: now.xdp || unknown || missing(Hook::Xdp),
        tc: now.tc || unknown || missing(Hook::Tc),
    }
}

/// The devices of a configuration.
pub fn devices(config: &Config) -> BTreeSet<String> {
    config.gateway.attachments.iter().map(Attachment::device).collect()
}

/// Refuses what is missing and is none of the devices that are known.
///
/// # Errors
/// Each of them.
pub fn refuse_new(
    config: &Config,
    missing: &[Missing],
    known: &BTreeSet<String>,
) -> Result<(), Vec<ConfigError>> {
    let new = missing.iter().filter(|missing| !known.contains(&missing.device));
    refuse(config, "interface", new.map(|one| (one.attachment.as_str(), one.fault.clone())))
}

/// Refuses a gateway that has no interface at all.
///
/// # Errors
/// What is missing.
pub fn refuse_none(config: &Config, places: &Places) -> Result<(), Vec<ConfigError>> {
    let missing = if places.interfaces.is_empty() { &places.missing[..] } else { &[] };
    let faults = missing.iter().map(|one| (one.attachment.as_str(), one.fault.clone()));
    refuse(config, "interface", faults)
}

/// Refuses an interface that is to be served by programs which are not loaded, if the file asks for
/// that: not where one that is `in_force` as it is stated came back under another driver.
///
/// # Errors
/// The attachments there.
pub fn refuse_not_loaded(
    config: &Config,
    in_force: &Config,
    places: &Places,
    loaded: Hooks,
) -> Result<(), Vec<ConfigError>> {
    let is_stated_anew = |stated: &Attachment| {
        let known = in_force.gateway.attachments.iter();
        !known.into_iter().any(|at| (&at.interface, at.hook) == (&stated.interface, stated.hook))
    };
    let lacking = |interface: &str| {
        let (_, hook) = places.interfaces.values().find(|(name, _)| name == interface)?;
        match hook {
            Served::Xdp => (!loaded.xdp).then_some("XDP"),
            Served::Tc => (!loaded.tc).then_some("TC"),
        }
    };
    let stated = config.gateway.attachments.iter().filter(|stated| is_stated_anew(stated));
    let faults = stated.filter_map(|Attachment { name, interface, .. }| {
        let hook = lacking(interface)?;
        let message = format!(
            "`{interface}` would be served by {hook}, and so far no interface is; that takes a \
             restart"
        );
        Some((name.as_str(), message))
    });
    refuse(config, "hook", faults)
}

/// Refuses a field of some attachments, each with a message.
fn refuse<'a>(
    config: &Config,
    field: &str,
    faults: impl Iterator<Item = (&'a str, String)>,
) -> Result<(), Vec<ConfigError>> {
    let attachments = &config.gateway.attachments;
    let faults: Vec<ConfigError> = faults
        .filter_map(|(name, message)| {
            let place = attachments.iter().position(|attachment| attachment.name == name)?;
            Some(config.fault(&format!("gateway.attachments[{place}].{field}"), message))
        })
        .collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::numbers::Numbers,
        flows::testing::{self, TWO_CLUSTERS},
    };

    /// The places of the scene without some of its interfaces, with a hook stated for `eth4`.
    fn without(missing: &[u32], hook: Hook) -> (Config, Places) {
        let mut config = testing::scene(TWO_CLUSTERS).config;
        for attachment in &mut config.gateway.attachments {
            attachment.hook = if attachment.interface == "eth4" { hook } else { Hook::Tc };
        }
        let mut network = testing::network_of(&config);
        network.links.retain(|ifindex, _| !missing.contains(ifindex));
        let numbers = Numbers::default().with(&config.gateway);
        let places =
            Places::of(&config, &network, &served(&config, &network, Hooks::ALL), &numbers);
        (config, places)
    }

    #[test]
    fn what_was_there_may_be_missing_and_a_new_name_may_not() {
        let (config, places) = without(&[2, 4], Hook::Tc);
        assert!(refuse_none(&config, &places).is_ok());
        assert!(refuse_new(&config, &places.missing, &devices(&config)).is_ok());
        let known = ["eth1", "eth2", "eth3"].map(str::to_owned).into();
        let refused = refuse_new(&config, &places.missing, &known).unwrap_err();
        let said = "test.yaml:9:25: gateway.attachments[3].interface: attachment `internet`: there is \
                    no interface `eth4`";
        assert_eq!(refused.iter().map(ToString::to_string).collect::<Vec<_>>(), [said]);
        let (config, none) = without(&[1, 2, 3, 4], Hook::Tc);
        assert_eq!(refuse_none(&config, &none).unwrap_err().len(), 4);
    }

    #[test]
    fn a_hook_whose_programs_are_not_loaded_is_refused_where_it_is_asked_for() {
        let (config, places) = without(&[], Hook::Xdp);
        let (before, _) = without(&[], Hook::Tc);
        assert_eq!(refuse_not_loaded(&config, &before, &places, in_use(&places)), Ok(()));
        let loaded = Hooks { xdp: false, tc: true };
        // What was in force as it is stated now has changed by itself.
        assert_eq!(refuse_not_loaded(&config, &config, &places, loaded), Ok(()));
        let [refused] = &refuse_not_loaded(&config, &before, &places, loaded).unwrap_err()[..]
        else {
            panic!("one")
        };
        assert_eq!(
            refused.to_string(),
            "test.yaml:9:7: gateway.attachments[3].hook: `eth4` would be served by XDP, and so far \
             no interface is; that takes a restart"
        );
    }

    #[test]
    fn a_driver_that_can_redirect_gets_xdp_and_a_veth_does_not() {
        let can = |native, redirect| {
            Some(XdpFeatures { native, redirect, receives_redirected: true, fragments: true })
        };
        for (kind, xdp, hook) in [
            (None, can(true, true), Served::Xdp),
            (None, can(true, false), Served::Tc),
            (None, can(false, true), Served::Tc),
            (None, None, Served::Tc), // the kernel does not say
            (Some("bond"), can(true, true), Served::Xdp),
            (Some("veth"), can(true, true), Served::Tc),
        ] {
            assert_eq!(suitable(kind, || xdp), hook, "{kind:?} {xdp:?}");
        }
    }

    #[test]
    fn a_hook_that_is_left_to_us_is_one_that_is_loaded_where_that_serves() {
        let hooks = |xdp, tc| Hooks { xdp, tc };
        for (suitable, loaded, hook) in [
            (Served::Xdp, Hooks::ALL, Served::Xdp),
            (Served::Xdp, hooks(true, false), Served::Xdp),
            (Served::Xdp, hooks(false, true), Served::Tc),
            (Served::Tc, Hooks::ALL, Served::Tc),
            (Served::Tc, hooks(true, false), Served::Tc), // it takes a restart
        ] {
            assert_eq!(chosen(suitable, loaded), hook, "{suitable:?} {loaded:?}");
        }
    }

    #[test]
    fn a_veth_that_is_served_by_xdp_is_named() {
        for (hook, kind, named) in
            [(Hook::Xdp, "veth", &["eth4"][..]), (Hook::Xdp, "bond", &[]), (Hook::Tc, "veth", &[])]
        {
            let (config, places) = without(&[], hook);
            let mut network = testing::network_of(&config);
            for link in network.links.values_mut() {
                link.kind = Some(kind.to_owned());
            }
            let veths: Vec<_> = veths_on_xdp(&places, &network).into_iter().collect();
            assert_eq!(veths, named, "{hook:?} {kind}");
        }
    }

    #[test]
    fn what_is_switched_off_is_named_and_what_has_no_carrier_is_not() {
        let (config, places) = without(&[3], Hook::Tc);
        let mut network = testing::network_of(&config);
        for (ifindex, admin_up) in [(1, true), (2, false), (3, false)] {
            let link = network.links.get_mut(&ifindex).unwrap();
            (link.admin_up, link.carrier) = (admin_up, false);
        }
        // Nobody serves the third.
        let off: Vec<_> = switched_off(&places, &network).into_iter().collect();
        assert_eq!(off, ["eth2"]);
    }

    #[test]
    fn programs_are_there_for_what_may_come() {
        let hooks = |xdp, tc| Hooks { xdp, tc };
        for (missing, hook, loaded) in [
            (&[][..], Hook::Tc, hooks(false, true)),
            (&[4], Hook::Tc, hooks(false, true)),
            (&[4], Hook::Xdp, hooks(true, true)),
            (&[4], Hook::Auto, hooks(true, true)), // its driver is not known yet
            (&[1, 2, 3], Hook::Xdp, hooks(true, true)),
        ] {
            let (config, places) = without(missing, hook);
            assert_eq!(to_load(&config, &places), loaded, "{missing:?} {hook:?}");
        }
    }
}
