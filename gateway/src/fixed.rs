//! What a running gateway cannot change: said of a file that would, with the lines.

use crate::{
    config::{Config, ConfigError},
    datapath::object::Sizes,
};

/// Refuses changes of what is looked at once, at the start.
///
/// # Errors
/// Each of them, where it stands in the next file.
pub(crate) fn refuse(in_force: &Config, next: &Config) -> Result<(), Vec<ConfigError>> {
    let (old, new) = (&in_force.gateway, &next.gateway);
    let sizes = [in_force, next].map(|config| Sizes::of(&config.gateway.tables).shown_by());
    let [old_sizes, new_sizes] = sizes;
    let resized = old_sizes.iter().zip(&new_sizes).filter(|(old, new)| old.wanted != new.wanted);
    let resized = resized.map(|(old, _)| {
        let (name, old) = (old.setting, old.wanted);
        let message = format!(
            "`tables.{name}` was changed; sizes are fixed while the tables exist: set it back to \
             {old}, or stop the gateway, run `sluice-gateway detach` and start again, which ends all \
             sessions"
        );
        next.fault(&format!("gateway.tables.{name}"), message)
    });
    let moved = (old.pin_path != new.pin_path).then(|| {
        // A restart would leave what is pinned there.
        let message = format!(
            "`pin_path` was changed from {}; set it back, or stop the gateway, run \
             `sluice-gateway detach` with the old path and start again",
            old.pin_path.display()
        );
        next.fault("gateway.pin_path", message)
    });
    let once = [
        ("socket", old.socket == new.socket),
        ("state_dir", old.state_dir == new.state_dir),
        ("flow_log", old.flow_log == new.flow_log),
        ("metrics", old.metrics == new.metrics),
    ];
    let once = once.into_iter().filter(|(_, same)| !same).map(|(name, _)| {
        let message = format!("`{name}` was changed; it takes effect with a restart");
        next.fault(&format!("gateway.{name}"), message)
    });
    let mut faults: Vec<ConfigError> = resized.chain(moved).chain(once).collect();
    faults.sort_by_key(|fault| (fault.line, fault.column));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::TWO_CLUSTERS;

    const GATEWAY: &str = "
gateway:
  socket: /run/one.sock
  tables: { sessions: 1024, rules: 64 }";

    fn config(edit: impl FnOnce(String) -> String) -> Config {
        let text = edit(TWO_CLUSTERS.replacen("\ngateway:", GATEWAY, 1));
        Config::parse(&text, "f.yaml").unwrap_or_else(|faults| panic!("{faults:#?}"))
    }

    #[test]
    fn what_is_looked_at_once_is_refused_with_its_line() {
        let in_force = config(|text| text);
        assert_eq!(refuse(&in_force, &in_force), Ok(()));
        let add = |field: &str| format!("  socket: /run/one.sock\n  {field}");
        for (new, said) in [
            (
                add("state_dir: /o"),
                "f.yaml:4:3: gateway.state_dir: `state_dir` was changed; it takes",
            ),
            (
                add("flow_log: { path: /o }"),
                "f.yaml:4:3: gateway.flow_log: `flow_log` was changed; it takes effect with a restart",
            ),
            (add("metrics: { listen: \"127.0.0.1:1\" }"), "f.yaml:4:3: gateway.metrics: `metrics`"),
            (add("pin_path: /o"), "f.yaml:4:3: gateway.pin_path: `pin_path` was changed from /"),
            ("  socket: /run/two.sock".to_owned(), "f.yaml:3:3: gateway.socket: `socket` was"),
            // Left out, so the default is meant.
            ("  non_routable: [100.64.0.0/10]".to_owned(), "f.yaml:2:1: gateway.socket: `socket`"),
        ] {
            let next = config(|text| text.replacen("  socket: /run/one.sock", &new, 1));
            let [fault] = &refuse(&in_force, &next).unwrap_err()[..] else { panic!("{new}") };
            assert!(fault.to_string().starts_with(said), "{fault}\n{said}");
        }
    }

    #[test]
    fn every_change_is_named_in_the_order_of_the_file() {
        let next = config(|text| {
            text.replacen("rules: 64", "rules: 65", 1).replacen("one.sock", "two.sock", 1)
        });
        let faults = refuse(&config(|text| text), &next).unwrap_err();
        let said: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(said[0].starts_with("f.yaml:3:3: gateway.socket: "), "{said:?}");
        let rules = "f.yaml:4:29: gateway.tables.rules: `tables.rules` was changed; sizes are fixed \
                     while the tables exist: set it back to 64, or stop the gateway, run `sluice-gateway \
                     detach`";
        assert!(said[1].starts_with(rules) && said.len() == 2, "{said:?}");
    }
}
