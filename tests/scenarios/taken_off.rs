//! Somebody else takes programs off their interfaces, and pins out of their directory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use aya::programs::xdp::XdpMode;
use gateway::datapath::object::Hooks;
use lab::Hook;
use lab::plan::TRANSIT_SERVERS;
use lab::servers::ECHO;
use lab::{client, programs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::net::SocketAddrV4;
use xdp_abi::names;

use crate::stand::{Place, Stand, everywhere, show, within};

const TRANSIT: SocketAddrV4 = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);
const PATIENCE: Duration = Duration::from_secs(2);
/// The daemon looks every two seconds, and on a machine that is busy later.
const LATEST: Duration = Duration::from_secs(20);

everywhere!(what_somebody_takes_off_is_put_back);

fn what_somebody_takes_off_is_put_back(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand:
        a_link_that_is_detached_is_attached_again,
        a_link_of_another_interface_is_not_taken_over,
        tables_without_one_of_them_are_made_anew,
    )?;
    if place.hook == Hook::Xdp {
        show!(stand: a_hook_that_somebody_else_has_is_said_to_miss_its_program)?;
    }
    Ok(())
}

/// The pins of links, by what their names begin with.
fn links(pins: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(pins)?.map(|entry| Ok(entry?.path()));
    let mut links = entries.collect::<Result<Vec<_>>>()?;
    links.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    Ok(links)
}

/// Calls `bpf` with a request of up to 16 bytes.
fn bpf(command: libc::c_int, request: &[u64; 2]) -> Result<i32> {
    // SAFETY: the request is as long as it is said to be, and what it points to outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, request.as_ptr(), size_of_val(request)) };
    ensure!(answer >= 0, "bpf({command}): {}", io::Error::last_os_error());
    Ok(answer as i32)
}

/// Detaches a pinned link, as `bpftool link detach pinned` does.
fn detach(pin: &Path) -> Result<()> {
    const OBJ_GET: libc::c_int = 7;
    const LINK_DETACH: libc::c_int = 34;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let fd = bpf(OBJ_GET, &[path.as_ptr() as u64, 0])?;
    let detached = bpf(LINK_DETACH, &[fd as u64, 0]);
    nix::unistd::close(fd)?;
    detached.map(drop).with_context(|| pin.display().to_string())
}

fn attached_again(stand: &Stand) -> Result<f64> {
    stand.daemon.metric("sluice_programs_attached_again_total", &[])
}

fn is_ready(stand: &Stand) -> Result<bool> {
    Ok(stand.daemon.get("/readyz")?.0 == 200)
}

fn works(stand: &Stand) -> Result<()> {
    let pod = &stand.lab.pod("prod-us", "api").netns;
    client::echo(client::connect_to(pod, TRANSIT, PATIENCE)?.open()?, 1_000)?;
    Ok(())
}

fn a_link_that_is_detached_is_attached_again(stand: &mut Stand) -> Result<()> {
    works(stand)?;
    let links = links(&stand.lab.site().pins(), "link-")?;
    ensure!(links.len() >= 2, "{links:?}");
    let before = attached_again(stand)?;
    for link in &links {
        detach(link)?;
    }
    within(LATEST, "all of them are back", || {
        Ok(attached_again(stand)? - before == links.len() as f64)
    })?;
    ensure!(is_ready(stand)?, "{}", stand.daemon.get("/readyz")?.1);
    ensure!(stand.daemon.stderr().contains("it is attached again"), "{}", stand.daemon.stderr());
    works(stand)
}

fn a_link_of_another_interface_is_not_taken_over(stand: &mut Stand) -> Result<()> {
    let pins = stand.lab.site().pins();
    let [one, other, ..] = &links(&pins, "link-tc-egress-")?[..] else {
        return Ok(()); // one arm, one link
    };
    // As when two interfaces change names while programs are attached.
    stand.daemon.kill()?;
    let aside = pins.join("aside");
    for (from, to) in [(one, &aside), (other, one), (&aside, other)] {
        fs::rename(from, to)?;
    }
    stand.daemon.restart()?;
    thread::sleep(Duration::from_secs(5));
    ensure!(attached_again(stand)? == 0.0, "{}", stand.daemon.stderr());
    ensure!(is_ready(stand)?, "{}", stand.daemon.get("/readyz")?.1);
    works(stand)
}

/// The rows of `sluicectl programs` that are said to be missing.
fn missing(stand: &Stand) -> Result<Vec<(String, String)>> {
    let answer: Value = serde_json::from_str(&stand.ctl(&["-o", "json", "programs"])?)?;
    let programs = answer["programs"].as_array().context("a list of programs")?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let missing = programs.iter().filter(|program| program["missing"] == true);
    Ok(missing.map(|program| (word(&program["interface"]), word(&program["hook"]))).collect())
}

fn a_hook_that_somebody_else_has_is_said_to_miss_its_program(stand: &mut Stand) -> Result<()> {
    let link = links(&stand.lab.site().pins(), "link-xdp-")?.pop().context("a link of XDP")?;
    let ifindex = link.to_string_lossy().rsplit('-').next().context("a number")?.parse()?;
    let daemon = Pid::from_raw(i32::try_from(stand.daemon.pid())?);
    let gateway = stand.lab.gateway.clone();
    let (mut other, taken) = gateway.enter(|| {
        let mut other = programs::object(Hooks { xdp: true, tc: false })?;
        // Between the two steps nobody looks.
        kill(daemon, Signal::SIGSTOP)?;
        let taken = detach(&link).and_then(|()| {
            let program = other.xdp(names::XDP_INGRESS)?;
            Ok(program.attach_to_if_index(ifindex, XdpMode::Driver)?)
        });
        kill(daemon, Signal::SIGCONT)?;
        Ok((other, taken?))
    })?;
    let mut said = String::new();
    within(LATEST, "it is missed", || {
        let (status, body) = stand.daemon.get("/readyz")?;
        said = body;
        Ok(status == 503)
    })?;
    ensure!(said.contains("has no program at xdp\n"), "{said}");
    ensure!(said.contains("does not take the XDP program"), "{said}");
    let missed = missing(stand)?;
    ensure!(missed.len() == 1 && missed[0].1 == "xdp", "{missed:?}");
    // A policy is put into force all the same.
    stand.reload()?;
    gateway.enter(|| Ok(other.xdp(names::XDP_INGRESS)?.detach(taken)?))?;
    within(LATEST, "it is back", || is_ready(stand))?;
    ensure!(missing(stand)?.is_empty());
    let said = stand.daemon.stderr();
    let times = said.matches("does not take the XDP program").count();
    ensure!(times == 1, "it is said once, not {times} times: {said}");
    works(stand)
}

fn tables_without_one_of_them_are_made_anew(stand: &mut Stand) -> Result<()> {
    let sessions = |stand: &Stand| -> Result<u64> {
        let answer: Value = serde_json::from_str(&stand.ctl(&["-o", "json", "sessions"])?)?;
        answer["matched"].as_u64().context("a number of sessions")
    };
    for table in [names::SLOTS4, names::HOSTS4, names::CONFIG] {
        works(stand)?;
        ensure!(sessions(stand)? > 0, "{table}");
        stand.daemon.stop()?;
        let pins = stand.lab.site().pins();
        fs::remove_file(pins.join(table))?;
        let kept = MapData::from_pin(pins.join(names::RECORDS4))?.info()?.id();
        stand.daemon.restart()?;
        let said = stand.daemon.stderr();
        ensure!(
            said.contains(&format!("made anew, and every session has ended table=\"{table}\"")),
            "{said}"
        );
        ensure!(sessions(stand)? == 0, "{table}: a session of before is in a table of now");
        let anew = MapData::from_pin(pins.join(names::RECORDS4))?.info()?.id();
        ensure!(kept != anew, "{table}: records are still those of before");
        works(stand)?;
        // And the next start takes all of it over.
        let before = sessions(stand)?;
        stand.daemon.restart()?;
        ensure!(sessions(stand)? >= before, "{table}: sessions are lost again");
    }
    Ok(())
}
