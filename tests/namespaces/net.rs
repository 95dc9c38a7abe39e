//! A network of this test's own: a bridge in a network namespace, and a namespace for each node that hangs on it.
//!
//! The only thing outside is one end of a veth pair, by which this process reaches the nodes. Its name is the network's
//! number, so that the kernel gives each number to one network at a time. What dies with the namespaces dies with the
//! test; names carry the process id, by which a later run knows what a killed one left.

use std::{
    fs,
    path::Path,
    process::{Command, id},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::process::{Pid, Signal, kill_process};

/// What names of namespaces and directories of these tests begin with.
pub(crate) const PREFIX: &str = "ledgertest-";
/// What names of our ends in the first namespace begin with.
const LINK: &str = "ledgert";

/// A network. Everything goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    number: u8,
    hosts: Vec<u8>,
    means: Means,
    /// What was put on devices and must be taken off to heal: namespace, device and
    /// queueing discipline.
    spoiled: Mutex<Vec<(String, String, &'static str)>>,
}

/// Which packets of a node vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Those to it.
    In,
    /// Those from it.
    Out,
    Both,
}

/// How packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// By tc's netem.
    Netem,
    /// By a classifier of tc that draws a random number for each packet, where the kernel has no netem.
    Classifier,
}

/// Runs a command; its standard output, or what went wrong.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {}`: {}", args.join(" "), said.trim()))
}

fn words(program: &str, line: &str) -> Result<String, String> {
    run(program, &line.split_whitespace().collect::<Vec<_>>())
}

/// `ip` with arguments in one line.
fn ip(line: &str) -> Result<String, String> {
    words("ip", line)
}

fn tc(line: &str) -> Result<String, String> {
    words("tc", line)
}

impl Net {
    /// Makes a network without nodes; an error says what is missing.
    pub(crate) fn new() -> Result<Self, String> {
        static LEFT_OVERS: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        LEFT_OVERS.call_once(remove_left_overs);
        let name = format!("{PREFIX}{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        for program in ["ip", "tc"] {
            run(program, &["-V"]).map_err(|why| format!("iproute2 is needed: {why}"))?;
        }
        ip(&format!("netns add {name}"))?;
        // From here on the drop cleans up.
        let mut net =
            Self { name, number: 0, hosts: Vec::new(), means: Means::Netem, spoiled: Mutex::default() };
        let name = &net.name;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link add bridge type bridge"))?;
        ip(&format!("-n {name} link set bridge up"))?;
        let taken = |number: &u8| {
            ip(&format!("link add {LINK}{number} type veth peer name port0 netns {name}")).map(|_| *number)
        };
        let mut why = String::new();
        let found = (0..=u8::MAX).find_map(|number| taken(&number).map_err(|error| why = error).ok());
        net.number = found.ok_or(why)?;
        let (name, number) = (&net.name, net.number);
        ip(&format!("-n {name} link set port0 master bridge up"))?;
        ip(&format!("addr add 10.77.{number}.254/24 dev {LINK}{number}"))?;
        ip(&format!("link set {LINK}{number} up"))?;
        net.means = means(&net.name)?;
        Ok(net)
    }

    /// Adds a namespace for a node.
    pub(crate) fn add(&mut self, host: u8) {
        let (name, namespace, address) = (&self.name, self.namespace(host), self.address(host));
        let steps = [
            format!("netns add {namespace}"),
            format!("-n {name} link add port{host} type veth peer name eth0 netns {namespace}"),
            format!("-n {name} link set port{host} master bridge up"),
            format!("-n {namespace} addr add {address}/24 dev eth0"),
            // A packet is what would go over a wire, so that the loss of one is the loss of one.
            format!("-n {namespace} link set eth0 gso_max_segs 1 up"),
            format!("-n {namespace} link set lo up"),
        ];
        self.hosts.push(host);
        for step in steps {
            ip(&step).unwrap();
        }
    }

    /// The namespace of a node.
    pub(crate) fn namespace(&self, host: u8) -> String {
        format!("{}-{host}", self.name)
    }

    /// The address of a node.
    pub(crate) fn address(&self, host: u8) -> String {
        format!("10.77.{}.{host}", self.number)
    }

    /// How packets are lost here, for people.
    pub(crate) fn means(&self) -> &'static str {
        match self.means {
            Means::Netem => "netem",
            Means::Classifier => "a random tc classifier, as the kernel has no netem",
        }
    }

    /// Loses so many of all packets, each of which passes one lossy port: between nodes, and to and from this process.
    pub(crate) fn lose(&self, percent: u32) {
        for host in self.hosts.iter().copied().chain([0]) {
            self.spoil(&self.name, &format!("port{host}"), percent);
        }
    }

    /// Cuts a node off from everybody, without anybody being told: packets vanish.
    pub(crate) fn cut(&self, host: u8, way: Way) {
        if way != Way::Out {
            self.spoil(&self.name, &format!("port{host}"), 100);
        }
        if way != Way::In {
            self.spoil(&self.namespace(host), "eth0", 100);
        }
    }

    /// Cuts two nodes off from each other.
    pub(crate) fn cut_link(&self, one: u8, other: u8) -> Result<(), String> {
        for (from, to) in [(one, other), (other, one)] {
            // Load the destination's address (14 bytes of Ethernet, 16 of IP before it), and drop what is for the other.
            let to = u32::from_be_bytes([10, 77, self.number, to]);
            let program = format!("4,32 0 0 30,21 0 1 {to},6 0 0 2,6 0 0 0");
            let namespace = self.namespace(from);
            classify(&namespace, "eth0", &program)?;
            let entry = (namespace, "eth0".to_owned(), "clsact");
            self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        }
        Ok(())
    }

    /// Ends all loss.
    pub(crate) fn heal(&self) {
        for (namespace, device, qdisc) in
            self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).drain(..)
        {
            tc(&format!("-n {namespace} qdisc del dev {device} {qdisc}")).unwrap();
        }
    }

    /// How many percent of the packets are lost, as the kernel counted.
    pub(crate) fn lost(&self) -> u64 {
        let (mut passed, mut dropped) = (0, 0);
        for (namespace, device, _) in &*self.spoiled.lock().unwrap_or_else(PoisonError::into_inner) {
            let shown = tc(&format!("-n {namespace} -s qdisc show dev {device}")).unwrap();
            let qdisc = match self.means {
                Means::Netem => "qdisc netem",
                Means::Classifier => "qdisc clsact",
            };
            // qdisc …
            //  Sent 4242 bytes 42 pkt (dropped 18, …
            let counts = shown.lines().skip_while(|line| !line.starts_with(qdisc)).nth(1).unwrap_or_default();
            let words: Vec<_> = counts.split_whitespace().collect();
            let number = |index: usize| -> u64 {
                words.get(index).and_then(|word| word.trim_end_matches(',').parse().ok()).unwrap_or_default()
            };
            let (packets, lost) = (number(3), number(6));
            // A classifier sees a packet before it is dropped.
            passed += if self.means == Means::Netem { packets } else { packets.saturating_sub(lost) };
            dropped += lost;
        }
        dropped * 100 / (passed + dropped).max(1)
    }

    fn spoil(&self, namespace: &str, device: &str, percent: u32) {
        spoil(self.means, namespace, device, percent).unwrap();
        let qdisc = match self.means {
            Means::Netem => "root",
            Means::Classifier => "clsact",
        };
        let entry = (namespace.to_owned(), device.to_owned(), qdisc);
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

/// Loses so many of the packets that leave by a device.
fn spoil(means: Means, namespace: &str, device: &str, percent: u32) -> Result<(), String> {
    match means {
        Means::Netem => {
            // Some delay makes them overtake each other, too.
            let delay = if percent < 100 { "delay 5ms 5ms" } else { "" };
            tc(&format!("-n {namespace} qdisc add dev {device} root netem loss {percent}% {delay}"))?;
        }
        Means::Classifier => {
            // Load a random number; if it is at least so much, let the packet go on, else drop it. The numbers are
            // BPF_LD | BPF_W | BPF_ABS of SKF_AD_OFF + SKF_AD_RANDOM, BPF_JMP | BPF_JGE, BPF_RET of TC_ACT_OK and
            // of TC_ACT_SHOT.
            let least = u64::from(u32::MAX) * u64::from(percent) / 100;
            let program = match percent {
                100 => "1,6 0 0 2".to_owned(),
                _ => format!("4,32 0 0 4294963256,53 0 1 {least},6 0 0 0,6 0 0 2"),
            };
            classify(namespace, device, &program)?;
        }
    }
    Ok(())
}

/// Has a classic BPF program decide what becomes of the packets that leave by a device.
fn classify(namespace: &str, device: &str, program: &str) -> Result<(), String> {
    tc(&format!("-n {namespace} qdisc add dev {device} clsact"))?;
    let line = format!("-n {namespace} filter add dev {device} egress bpf da bytecode");
    let mut args: Vec<_> = line.split_whitespace().collect();
    args.push(program);
    run("tc", &args).map(drop)
}

/// What this kernel can do, tried on a device of the network.
fn means(namespace: &str) -> Result<Means, String> {
    let netem = spoil(Means::Netem, namespace, "port0", 30);
    if netem.is_ok() {
        tc(&format!("-n {namespace} qdisc del dev port0 root"))?;
        return Ok(Means::Netem);
    }
    spoil(Means::Classifier, namespace, "port0", 30)
        .map_err(|error| format!("the kernel has neither netem nor BPF classifiers for tc: {error}"))?;
    tc(&format!("-n {namespace} qdisc del dev port0 clsact"))?;
    Ok(Means::Classifier)
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().map(|host| self.namespace(*host)).chain([self.name.clone()]) {
            let _ = ip(&format!("netns del {namespace}"));
        }
        // It dies with its other end, but that takes the kernel a moment, in which its number is taken.
        let _ = ip(&format!("link del {LINK}{}", self.number));
    }
}

/// The process that made something, if it no longer runs.
fn died(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let maker = rest.split('-').next().and_then(|number| number.parse::<u32>().ok());
    maker.is_some_and(|maker| maker != id() && !is_one_of_these_tests(maker))
}

/// Whether a process is a run of these tests: numbers are used again.
fn is_one_of_these_tests(process: u32) -> bool {
    let path = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("namespaces"))
}

/// Removes what killed runs left: processes in their namespaces, the namespaces, mounts, directories.
fn remove_left_overs() {
    for name in ip("netns list").unwrap_or_default().lines().filter_map(|line| line.split(' ').next()) {
        if !died(name) {
            continue;
        }
        for process in ip(&format!("netns pids {name}")).unwrap_or_default().lines() {
            if let Some(pid) = process.trim().parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = ip(&format!("netns del {name}"));
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(place).iter().any(|part| died(&part.to_string_lossy())) {
            let _ = run("umount", &["--lazy", place]);
        }
    }
    for directory in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        // What a failed run kept to be looked at has another name.
        if died(&directory.file_name().to_string_lossy()) {
            let _ = fs::remove_dir_all(directory.path());
        }
    }
}
