//! Which workload a pod belongs to, by its own metadata alone.
//!
//! A pod of a Deployment is owned by a ReplicaSet and names only that; asking for the ReplicaSet
//! would be one more kind to watch, and one more to be allowed. The name says enough: a controller
//! builds it from its own. What is not certain stays what the pod says.

use smartgroups::{Pool, Workload};

use super::object::{Metadata, OwnerReference, Pairs};

/// Labels with the hash that a controller put behind its own name to name a ReplicaSet.
const TEMPLATE_HASHES: [(&str, &str); 2] =
    [("pod-template-hash", "Deployment"), ("rollouts-pod-template-hash", "Rollout")];

/// What a CronJob puts behind its own name is the minute it was due, since 1970: eight digits from
/// 1989 until 2160.
const MINUTE_DIGITS: usize = 8;

/// The workload of a pod, or `None` for one that nobody controls.
///
/// A Job that somebody named like one of a CronJob (`backup-29340000`) is taken for one of `backup`,
/// and a static pod, which its node owns, has no workload.
pub(crate) fn workload(metadata: &Metadata, pool: &mut Pool) -> Option<Workload> {
    let owner = metadata.owner_references.iter().find(|owner| owner.controller)?;
    if owner.kind == "Node" {
        return None;
    }
    let (kind, name) = resolve(owner, &metadata.labels);
    Some(Workload { kind: pool.text(kind), name: pool.text(name) })
}

fn resolve<'a>(owner: &'a OwnerReference, labels: &Pairs) -> (&'a str, &'a str) {
    let stem = |suffix: &str| {
        let stem = owner.name.strip_suffix(suffix)?.strip_suffix('-')?;
        (!stem.is_empty()).then_some(stem)
    };
    if owner.kind == "ReplicaSet" {
        for (label, kind) in TEMPLATE_HASHES {
            if let Some(name) = labels.get(label).and_then(stem) {
                return (kind, name);
            }
        }
    }
    if owner.kind == "Job" {
        let digits = owner.name.rsplit('-').next().unwrap_or_default();
        if digits.len() == MINUTE_DIGITS
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && let Some(name) = stem(digits)
        {
            return ("CronJob", name);
        }
    }
    (&owner.kind, &owner.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_found_by_names_and_stays_what_the_pod_says_where_they_do_not_tell() {
        let hash = ("pod-template-hash", "6d4b75cb6d");
        for (kind, name, label, expected) in [
            ("ReplicaSet", "web-6d4b75cb6d", Some(hash), ("Deployment", "web")),
            ("ReplicaSet", "web-6d4b75cb6d", None, ("ReplicaSet", "web-6d4b75cb6d")),
            ("ReplicaSet", "web-other", Some(hash), ("ReplicaSet", "web-other")),
            ("ReplicaSet", "6d4b75cb6d", Some(hash), ("ReplicaSet", "6d4b75cb6d")),
            ("ReplicaSet", "-6d4b75cb6d", Some(hash), ("ReplicaSet", "-6d4b75cb6d")),
            (
                "ReplicaSet",
                "web-77",
                Some(("rollouts-pod-template-hash", "77")),
                ("Rollout", "web"),
            ),
            ("Job", "backup-29340000", None, ("CronJob", "backup")),
            ("Job", "backup-2934000", None, ("Job", "backup-2934000")), // a digit short
            ("Job", "backup-2934000x", None, ("Job", "backup-2934000x")),
            ("Job", "29340000", None, ("Job", "29340000")), // nothing before it
            ("StatefulSet", "db", Some(hash), ("StatefulSet", "db")),
            ("DaemonSet", "agent-29340000", None, ("DaemonSet", "agent-29340000")),
        ] {
            let metadata = Metadata {
                labels: label.into_iter().collect(),
                owner_references: vec![
                    OwnerReference { kind: "Other".into(), name: "x".into(), controller: false },
                    OwnerReference { kind: kind.into(), name: name.into(), controller: true },
                ],
                ..Metadata::default()
            };
            let found = workload(&metadata, &mut Pool::new()).unwrap();
            assert_eq!((&*found.kind, &*found.name), expected, "{kind} {name} {label:?}");
        }
    }

    #[test]
    fn what_nobody_controls_or_a_node_runs_has_no_workload() {
        for owners in [
            vec![],
            vec![OwnerReference { kind: "Job".into(), name: "j".into(), controller: false }],
            vec![OwnerReference { kind: "Node".into(), name: "n1".into(), controller: true }],
        ] {
            let metadata = Metadata { owner_references: owners, ..Metadata::default() };
            assert_eq!(workload(&metadata, &mut Pool::new()), None, "{metadata:?}");
        }
    }
}
