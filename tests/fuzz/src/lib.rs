//! Everything that reads bytes which somebody else wrote, each behind one function.
//!
//! None of them may panic, whatever the bytes are; the gateway in memory must in addition let
//! nothing leak and account for every frame. `make fuzz` has libFuzzer look for bytes that do
//! not hold; the tests here feed the committed seeds and a fixed number of mutations of them, so
//! that no target is forgotten.

mod frame;
mod tables;

use std::sync::OnceLock;

use api::document::Document;
use api::explain::ExplainRequest;
use api::filter::Filter;
use gateway::config::Config;

/// Reads bytes.
pub type Target = fn(&[u8]);

/// All of them, by name. Each has a directory of seeds.
pub const TARGETS: [(&str, Target); 8] = [
    ("frame", frame::frames),
    ("netlink", netlink),
    ("config", config),
    ("document", document),
    ("filter", filter),
    ("event", tables::event),
    ("session", tables::session),
    ("watch", smartgroups_discovery::kubernetes::foreign::answers),
];

/// A configuration that is used as it is shipped.
fn example() -> &'static Config {
    static EXAMPLE: OnceLock<Config> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let text = include_str!("../../../docs/sluice.example.yaml");
        Config::parse(text, "example").expect("the shipped example is right")
    })
}

/// What the kernel says on a netlink socket.
fn netlink(bytes: &[u8]) {
    gateway::net::foreign::datagram(bytes);
    gateway::serve::read_foreign_route(bytes);
}

/// The configuration file: refused in words that have a place in it, also where it does not fit
/// the tables, or accepted, perhaps with warnings that have a place as well.
fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let said = match Config::parse(text, "file") {
        Ok(config) => config.warnings,
        Err(errors) => {
            assert!(!errors.is_empty(), "a file is refused for a reason");
            errors
        }
    };
    for said in said {
        assert!(said.line >= 1 && said.column >= 1, "{said}");
        assert!(!said.message.is_empty(), "{said}");
    }
}

/// What comes to the API as JSON.
fn document(bytes: &[u8]) {
    if let Ok(document) = serde_json::from_slice::<Document>(bytes) {
        let text = serde_json::to_vec(&document).expect("what was read can be written");
        let again: Document = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(again, document);
    }
    // That it is refused is an answer too.
    let _ = serde_json::from_slice::<ExplainRequest>(bytes);
}

/// A filter of sessions, and the two ends that `explain` takes.
fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(filter) = text.parse::<Filter>() {
        let again = filter.to_string().parse::<Filter>();
        assert_eq!(again.as_ref(), Ok(&filter), "{text:?} is written as it was read");
    }
    let (from, to) = text.split_once('\n').unwrap_or((text, ""));
    let _ = ExplainRequest::parse(from, to);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Mutations of each seed: some seconds for all targets together.
    const MUTATIONS: u64 = 100;

    struct Dice(u64);

    impl Dice {
        /// SplitMix64, below a bound.
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ z >> 31) % bound.max(1) as u64) as usize
        }
    }

    fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
        for _ in 0..1 + dice.below(4) {
            let (from, to) = (dice.below(bytes.len()), dice.below(bytes.len()));
            match dice.below(6) {
                _ if bytes.is_empty() => bytes.push(dice.below(256) as u8),
                0 => bytes[from] ^= 1 << dice.below(8),
                1 => bytes[from] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
                2 => bytes.truncate(from),
                3 => bytes.insert(from, dice.below(256) as u8),
                4 => drop(bytes.drain(from.min(to)..from.max(to).min(from.min(to) + 16))),
                _ => {
                    let part = bytes[from.min(to)..from.max(to)].to_vec();
                    bytes.splice(to..to, part.into_iter().take(64));
                }
            }
        }
    }

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        let mut files: Vec<_> =
            directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    /// The bytes that were read when a panic came.
    struct Reading<'a>(&'a str, &'a [u8]);

    impl Drop for Reading<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("target {}, bytes {:02x?}", self.0, self.1);
            }
        }
    }

    #[test]
    fn no_seed_and_none_of_its_mutations_breaks_a_reader() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "target {name} has no seeds");
            for (number, seed) in seeds.iter().enumerate() {
                let mut dice = Dice(number as u64);
                target(seed);
                for _ in 0..MUTATIONS {
                    let mut bytes = seed.clone();
                    mutate(&mut bytes, &mut dice);
                    let _reading = Reading(name, &bytes);
                    target(&bytes);
                }
            }
        }
    }
}
