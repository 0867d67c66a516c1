//! The pods of a large cluster, made up, and shaped as clusters are: few teams and many deployments,
//! labels that all pods of a deployment share, one (`pod-template-hash`) that no group asks for.

use std::net::Ipv4Addr;

/// How many there are.
pub(crate) const PODS: u32 = 100_000;
/// Their namespaces.
pub(crate) const NAMESPACES: u32 = 2_000;
/// Their teams.
pub(crate) const TEAMS: u32 = 400;
/// Pods of the first namespace, which is larger than the others.
const CROWD: u32 = 2_000;
/// Pods of one deployment.
const REPLICAS: u32 = 10;

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct Pod(pub(crate) u32);

impl Pod {
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(0x6440_0000 + self.0)
    }

    pub(crate) fn namespace(self) -> String {
        let Self(number) = self;
        namespace(if number < CROWD { 0 } else { 1 + (number - CROWD) % (NAMESPACES - 1) })
    }

    /// Its deployment, service, and service account.
    pub(crate) fn app(self) -> String {
        format!("app-{}", self.deployment())
    }

    fn deployment(self) -> u32 {
        self.0 / REPLICAS
    }

    fn template_hash(self) -> String {
        format!("{:x}c5f", self.deployment())
    }

    pub(crate) fn replica_set(self) -> String {
        format!("{}-{}", self.app(), self.template_hash())
    }

    /// In its namespace.
    pub(crate) fn name(self) -> String {
        format!("{}-{:05x}", self.replica_set(), self.0)
    }

    /// The team that it belongs to at first.
    pub(crate) fn team(self) -> u32 {
        self.deployment() % TEAMS
    }

    pub(crate) fn labels(self, team: u32) -> [(&'static str, String); 5] {
        let tier = ["frontend", "backend", "data"][self.deployment() as usize % 3];
        [
            ("app", self.app()),
            ("team", format!("team-{team}")),
            ("tier", tier.to_owned()),
            ("app.kubernetes.io/version", format!("1.{}", self.deployment() % 20)),
            ("pod-template-hash", self.template_hash()),
        ]
    }
}

pub(crate) fn namespace(number: u32) -> String {
    format!("ns-{number}")
}

/// What a namespace is for at first.
pub(crate) fn env(namespace: u32) -> &'static str {
    ["stage", "test", "lab"][namespace as usize % 3]
}
