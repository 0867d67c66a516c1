//! Which programs there are, where they lie once they are built, and how a test goes without.

use std::path::PathBuf;

/// A program of somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    name: &'static str,
    module: &'static str,
    /// Its go.mod, which alone says the version: the script that builds reads the same line.
    go_mod: &'static str,
}

/// etcd, in which an API server keeps its objects.
pub const ETCD: Program = Program {
    name: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    go_mod: include_str!("../etcd/go.mod"),
};

/// The API server of Kubernetes.
pub const KUBE_APISERVER: Program = Program {
    name: "kube-apiserver",
    module: "k8s.io/kubernetes",
    go_mod: include_str!("../kube-apiserver/go.mod"),
};

impl Program {
    /// The version, as `v1.2.3`.
    pub fn version(&self) -> &'static str {
        let required = self.go_mod.lines().find_map(|line| {
            let line = line.trim();
            line.strip_prefix("require ").unwrap_or(line).strip_prefix(self.module)
        });
        required.and_then(|rest| rest.split_whitespace().next()).unwrap_or("unknown")
    }

    /// Where `scripts/peers.sh` puts it.
    pub fn path(&self) -> PathBuf {
        cache().join(format!("{}-{}", self.name, self.version()))
    }

    /// Its name, without the version.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// Where what takes long to make is kept from one run to the next.
pub fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = variable("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(variable("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("sluice/peers")
}

/// Why the first of these that is not built is not there.
pub fn missing(programs: &[Program]) -> Option<String> {
    programs.iter().find(|program| !program.path().is_file()).map(|program| {
        format!(
            "{} {} is not built; `scripts/peers.sh` builds it, which takes minutes and Go",
            program.name,
            program.version()
        )
    })
}

/// Says that a test was skipped. `place` is the path of something inside the test.
pub fn say_skipped(place: &str, why: &str) {
    let test = place.rsplit_once("::").map_or(place, |(test, _)| test);
    let test = test.trim_end_matches("::{{closure}}");
    let test = test.split_once("::").map_or(test, |(_, test)| test);
    println!("SKIPPED: {test}: {why}");
}

/// Ends a test, saying why, unless all of these programs are built.
#[macro_export]
macro_rules! require {
    ($($program:expr),+ $(,)?) => {
        if let Some(why) = $crate::missing(&[$($program),+]) {
            fn here() {}
            $crate::say_skipped(std::any::type_name_of_val(&here), &why);
            return;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module_file() {
        for (program, major) in [(ETCD, "v3."), (KUBE_APISERVER, "v1.")] {
            assert!(program.version().starts_with(major), "{program:?}");
            assert!(program.path().ends_with(format!("{}-{}", program.name, program.version())));
        }
    }

    #[test]
    fn what_is_not_built_is_named_with_what_builds_it() {
        let absent = Program { name: "absent", module: "m", go_mod: "require m v1.2.3\n" };
        let why = missing(&[absent]).unwrap();
        assert!(why.starts_with("absent v1.2.3 is not built; `scripts/peers.sh`"), "{why}");
    }
}
