//! Which programs there are, where they lie once they are built, and how a test goes without.

use std::path::PathBuf;

/// A program of somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    name: &'static str,
    /// What stands before the version in the line of `required` that has it.
    module: &'static str,
    /// Its go.mod or requirements.txt, which alone says the version: the script that builds reads the
    /// same line.
    required: &'static str,
    /// Where it is in the directory of its name and version, if it has one.
    file: Option<&'static str>,
    /// What building it takes.
    takes: &'static str,
}

/// etcd, in which an API server keeps its objects.
pub const ETCD: Program = Program {
    name: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    required: include_str!("../etcd/go.mod"),
    file: None,
    takes: "minutes and Go",
};

/// The API server of Kubernetes.
pub const KUBE_APISERVER: Program = Program {
    name: "kube-apiserver",
    module: "k8s.io/kubernetes",
    required: include_str!("../kube-apiserver/go.mod"),
    file: None,
    takes: "minutes and Go",
};

/// AWS, as moto has it.
pub const MOTO: Program = Program {
    name: "moto",
    module: "moto==",
    required: include_str!("../moto/requirements.txt"),
    // Written last, when all the others are there.
    file: Some("run"),
    takes: "a minute and Python",
};

impl Program {
    /// The version, as `v1.2.3` or `1.2.3`.
    pub fn version(&self) -> &'static str {
        let required = self.required.lines().find_map(|line| {
            let line = line.trim();
            line.strip_prefix("require ").unwrap_or(line).strip_prefix(self.module)
        });
        required.and_then(|rest| rest.split_whitespace().next()).unwrap_or("unknown")
    }

    /// Where `scripts/peers.sh` puts it.
    pub fn path(&self) -> PathBuf {
        let path = cache().join(format!("{}-{}", self.name, self.version()));
        self.file.map_or_else(|| path.clone(), |file| path.join(file))
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
            "{} {} is not built; `scripts/peers.sh` builds it, which takes {}",
            program.name,
            program.version(),
            program.takes
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
        for (program, major, file) in
            [(ETCD, "v3.", ""), (KUBE_APISERVER, "v1.", ""), (MOTO, "5.1.", "/run")]
        {
            assert!(program.version().starts_with(major), "{program:?}");
            let path = format!("{}-{}{file}", program.name, program.version());
            assert!(program.path().ends_with(path), "{:?}", program.path());
        }
    }

    #[test]
    fn what_is_not_built_is_named_with_what_builds_it() {
        let absent =
            Program { name: "absent", required: "require m v1.2.3\n", module: "m", ..ETCD };
        let why = missing(&[absent]).unwrap();
        assert!(why.starts_with("absent v1.2.3 is not built; `scripts/peers.sh`"), "{why}");
    }
}
