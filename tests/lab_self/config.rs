//! The configuration fits the lab that it was made for.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use api::document::Document;
use lab::{Config, Hook, Lab, Need, Offloads, Shape};
use serde_json::{Value, json};

#[test]
fn it_names_only_what_the_gateway_has() -> Result<()> {
    lab::require!(Need::Lab);
    for (shape, hook) in [(Shape::ThreeLegged, Hook::Xdp), (Shape::OneArmed, Hook::Tc)] {
        let lab = Lab::new(shape, Offloads::Off)?;
        let config: Value = serde_yaml::from_str(&Config::new(&lab, hook).yaml()?)?;
        let attachments = config["gateway"]["attachments"].as_array().context("attachments")?;
        ensure!(attachments.len() == 6, "two for each cluster, two sides: {attachments:?}");
        for attachment in attachments {
            ensure!(attachment["hook"] == hook.as_str(), "{attachment}");
            let interface = attachment["interface"].as_str().context("an interface")?;
            lab.gateway.run("ip", &["link", "show", "dev", interface])?;
        }
        let documents = config["documents"].as_array().context("documents")?;
        for document in documents {
            serde_json::from_value::<Document>(document.clone())
                .with_context(|| format!("not as the product has it: {document}"))?;
        }
        let names = |kind: &str| -> Vec<&str> {
            let of_kind = documents.iter().filter(|document| document["kind"] == kind);
            of_kind.filter_map(|document| document["name"].as_str()).collect()
        };
        let unique: BTreeSet<_> = documents
            .iter()
            .map(|document| format!("{}{}", document["kind"], document["name"]))
            .collect();
        ensure!(unique.len() == documents.len(), "names are unique");
        ensure!(names("Endpoint").len() == 8, "three pods and a node for each cluster");
        let groups = [names("SmartGroup"), vec!["anywhere"]].concat();
        for document in documents.iter().filter(|document| document["kind"] == "Rule") {
            for side in ["sources", "destinations"] {
                for group in document["spec"][side].as_array().context("groups")? {
                    let known = groups.iter().any(|known| group == known);
                    ensure!(known, "{} names {group}", document["name"]);
                }
            }
        }
        for address in documents.iter().filter_map(|document| document["spec"]["snat_ips"].get(0)) {
            let address = address.as_str().context("an address")?;
            let addresses = lab.gateway.run("ip", &["-o", "-4", "addr"])?;
            ensure!(addresses.contains(&format!(" {address}/")), "{address} is not the gateway's");
        }
    }
    Ok(())
}

#[test]
fn a_change_changes_what_it_says_and_nothing_else() -> Result<()> {
    lab::require!(Need::Lab);
    let lab = Lab::three_legged()?;
    let first = Config::new(&lab, Hook::Xdp);
    let mut config = first.clone();
    config.set_action("teams-ping", "reject");
    config.set_labels("prod-eu/api", json!({ "team": "web" }));
    config.set_ports("pods-to-internet", "40000-40099");
    config.set_table("sessions", 1_024);
    config.set_timer("udp", "5s");
    config.add_rule("extra", 10, "deny", "web", "internet-servers");
    config.remove("Rule", "batch-stays-inside");
    config.set_default("permit");
    let changed: Vec<_> = first
        .documents
        .iter()
        .filter(|document| !config.documents.contains(document))
        .filter_map(|document| document["name"].as_str())
        .collect();
    let expected =
        ["prod-eu/api", "teams-ping", "batch-stays-inside", "default", "pods-to-internet"];
    ensure!(changed == expected, "{changed:?}");
    ensure!(config.gateway["tables"]["sessions"] == 1_024);
    ensure!(config.gateway["timers"]["udp"] == "5s");
    ensure!(config.spec("Rule", "extra")["action"] == "deny");
    let path = lab.site().files().join("sluice.yaml");
    config.write(&path)?;
    let read: Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?)?;
    ensure!(read["documents"] == json!(config.documents));
    Ok(())
}
