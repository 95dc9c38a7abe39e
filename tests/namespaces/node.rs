//! A node as a process in a network namespace of its own, and what it says of itself.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use ledger_proto::ledger::v1::{
    LocateRequest, Location, MembersRequest, cluster_service_client::ClusterServiceClient,
};
use ledger_tests::{binary, until_async};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::{Channel, Endpoint};

use crate::{
    faults::{clock::WrongClock, power::Volume, sync::FaultySync},
    net::run,
};

/// How long a node may take to answer one question.
const ANSWER: Duration = Duration::from_secs(2);

/// A node, whether it runs or not. Its process is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) name: String,
    /// The `ledgerd` that it runs when it is started.
    pub(crate) program: PathBuf,
    pub(crate) clock: Option<WrongClock>,
    pub(crate) sync: Option<FaultySync>,
    pub(crate) volume: Option<Volume>,
    process: Option<Child>,
    channel: Channel,
    /// Where its files lie.
    dir: PathBuf,
    /// A file system of its own holds its data.
    is_mounted: bool,
}

impl Node {
    /// A node that was never started, with the files of its own in `dir`.
    pub(crate) fn new(number: u8, address: &str, dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("disk")).unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}:50051")).unwrap();
        // A connection that a partition cut must not be believed in for long.
        let endpoint = endpoint.connect_timeout(ANSWER);
        let endpoint = endpoint.http2_keep_alive_interval(ANSWER).keep_alive_timeout(ANSWER);
        Self {
            number,
            name: format!("node-{number}"),
            program: binary("ledgerd"),
            clock: None,
            sync: None,
            volume: None,
            process: None,
            channel: endpoint.keep_alive_while_idle(true).connect_lazy(),
            dir,
            is_mounted: false,
        }
    }

    /// Whether it was started and not ended since.
    pub(crate) const fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// To its gRPC services; connects when used, and again when broken.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where files that belong to it may be put.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.disk().join("data")
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    fn ready_file(&self) -> PathBuf {
        self.dir.join("ready.json")
    }

    /// Gives it a small file system for its data, before it starts.
    pub(crate) fn make_small(&mut self, bytes: usize) -> Result<(), String> {
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &self.disk().to_string_lossy()])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Fills a small file system until nothing more goes in.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        let block = vec![1; 1 << 12];
        while ballast.write_all(&block).is_ok() {}
    }

    /// Frees what filling took.
    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.disk().join("ballast")
    }

    /// Gives it a file system that can lose its power, before it starts.
    pub(crate) fn mount(&mut self, kind: crate::faults::power::FileSystem) -> Result<(), String> {
        self.volume = Some(Volume::mount(kind, &self.dir, self.disk())?);
        self.is_mounted = true;
        Ok(())
    }

    /// Starts its process in a network namespace; does not wait.
    pub(crate) fn spawn(&mut self, namespace: &str, flags: &[String]) {
        // Not `ip netns exec`: that takes a copy of all mounts, which would keep a volume from being unmounted.
        let mut command = Command::new("nsenter");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LEDGER") || name == "GRPC_PORT" {
                command.env_remove(name);
            }
        }
        // A killed test leaves no node behind.
        command.env("LEDGER_EXIT_WHEN_STDIN_CLOSES", "true").stdin(Stdio::piped());
        command.arg(format!("--net=/run/netns/{namespace}")).arg("env");
        command.args(self.clock.iter().flat_map(WrongClock::environment));
        command.args(self.sync.iter().flat_map(FaultySync::environment));
        command.arg(&self.program).args(["--node-id", &self.name]);
        command.arg("--data-dir").arg(self.data()).arg("--ready-file").arg(self.ready_file());
        command.args(flags);
        let _ = fs::remove_file(self.ready_file());
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    /// Waits until it serves after it was started; how it ended, if it did instead.
    pub(crate) async fn serves(&mut self) -> Result<(), ExitStatus> {
        let (ready, name) = (self.ready_file(), self.name.clone());
        until_async(&format!("{name} serves"), async || match self.ended() {
            Some(status) => Some(Err(status)),
            None => ready.exists().then_some(Ok(())),
        })
        .await
    }

    /// How it ended, if it did by itself since this was asked last.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().unwrap()?;
        self.process = None;
        Some(status)
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM, and waits for the end, which must be a good one. How long it took.
    pub(crate) async fn stop(&mut self) -> Duration {
        let begin = Instant::now();
        self.signal(Signal::TERM);
        let mut process = self.process.take().expect("it runs");
        let ended = until_async(&format!("{} stops", self.name), async || process.try_wait().unwrap()).await;
        assert!(ended.success(), "{} ended with {ended}:\n{}", self.name, self.log_tail());
        begin.elapsed()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops all of its threads, as if its processors stood still. Those that are in a call of the kernel end it first, and
    /// do nothing with what came of it.
    pub(crate) async fn freeze(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        until_async(&format!("{} stands still", self.name), async || {
            fs::read_dir(&threads).ok()?.flatten().all(|thread| is_still(&thread.path())).then_some(())
        })
        .await;
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.process.as_ref().expect("it runs"))
    }

    /// Removes the data of a node that does not run.
    pub(crate) fn wipe(&self) {
        assert!(!self.runs());
        fs::remove_dir_all(self.data()).unwrap();
    }

    /// The value of a metric, if it answers.
    pub(crate) async fn metric(&self, address: &str, name: &str) -> Option<f64> {
        let metrics = tokio::time::timeout(ANSWER, get_metrics(address)).await.ok()?.ok()?;
        let line = metrics.lines().find(|line| line.split_once(' ').is_some_and(|(key, _)| key == name))?;
        line.split_once(' ')?.1.trim().parse().ok()
    }

    /// Where all slots are, as it says.
    pub(crate) async fn locate(&self) -> Result<Vec<Location>, String> {
        let mut service = ClusterServiceClient::new(self.channel()).max_decoding_message_size(64 << 20);
        let answer = tokio::time::timeout(ANSWER, service.locate(LocateRequest::default())).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?;
        Ok(answer.map_err(|status| status.to_string())?.into_inner().locations)
    }

    /// The nodes that it hears, itself included.
    pub(crate) async fn alive(&self) -> Result<Vec<String>, String> {
        let mut service = ClusterServiceClient::new(self.channel());
        let answer = tokio::time::timeout(ANSWER, service.members(MembersRequest {})).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?;
        let members = answer.map_err(|status| status.to_string())?.into_inner().members.into_iter();
        Ok(members.filter(|member| member.alive).map(|member| member.node_id).collect())
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        if self.is_mounted {
            let _ = run("umount", &["--lazy", &self.disk().to_string_lossy()]);
        }
    }
}

/// Whether a thread is stopped, or in a call of the kernel that it will end before it stops.
fn is_still(thread: &Path) -> bool {
    // 42 (name of the thread) T …; a thread that has ended has no file any more.
    let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, None | Some('T' | 'D' | 'Z' | 'X'))
}

async fn get_metrics(address: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect((address, 50080)).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
