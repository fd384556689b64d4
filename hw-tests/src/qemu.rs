//! A guest whose QEMU is started directly, without libvirt: for what libvirt does not do, such as a live
//! migration from one QEMU to another on the same machine. Its memory is a file that can be compared.

use crate::accel::Accel;
use crate::cleanup;
use crate::command::wait_for;
use crate::console::{Console, Output};
use crate::image::Image;
use crate::process::Daemon;
use crate::run::Run;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long a guest may take to boot, and QEMU to start or to answer.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(30);

/// A network interface: a vhost-user socket, and what QEMU is to make of it.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// QEMU makes the socket, and the backend connects.
    pub listens: bool,
    /// The guest's MAC address.
    pub mac: String,
    /// Queue pairs.
    pub queues: u16,
    /// Properties of the device, such as `host_tso4=off`.
    pub properties: Vec<String>,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The name of its files.
    pub name: String,
    /// Kernel and file system.
    pub image: Image,
    /// How it runs.
    pub accel: Accel,
    /// MiB of memory.
    pub memory_mb: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Its interface.
    pub nic: Nic,
}

/// A QEMU process. Dropped, it is ended.
#[derive(Debug)]
pub struct Qemu {
    daemon: Daemon,
    control: Control,
    console: Option<Console>,
    serial: PathBuf,
    incoming: PathBuf,
    memory: PathBuf,
    /// The interface's socket when QEMU made it.
    made: Option<PathBuf>,
    _memory: cleanup::Guard,
}

impl Qemu {
    /// Boots a guest; it is up when this returns.
    pub fn boot(run: &Run, parts: &Parts) -> Result<Qemu> {
        let mut qemu = Self::start(run, parts, false)?;
        let mut console = Console::connect(&qemu.serial)?;
        qemu.proceed()?;
        console
            .wait_until_ready(BOOT_LIMIT)
            .with_context(|| format!("\"{}\" did not boot", parts.name))?;
        qemu.console = Some(console);
        Ok(qemu)
    }

    /// A QEMU without a guest, which will get one by migration and leave it paused.
    pub fn expect_migration(run: &Run, parts: &Parts) -> Result<Qemu> {
        Self::start(run, parts, true)
    }

    fn start(run: &Run, parts: &Parts, incoming: bool) -> Result<Qemu> {
        let dir = run.subdir("qemu")?;
        let file = |kind: &str| dir.join(format!("{}.{kind}", parts.name));
        let (serial, control) = (file("serial"), file("qmp"));
        let migration = file("migration");
        // In memory as a memfd would be, but with a name.
        let memory = PathBuf::from(format!("/dev/shm/{}-{}", run.name(), parts.name));
        for old in [&serial, &control, &migration, &memory] {
            let _ = fs::remove_file(old);
        }
        let gone = memory.clone();
        let undo = cleanup::on_exit(move || {
            let _ = fs::remove_file(&gone);
        });
        let nic = &parts.nic;
        if nic.listens {
            let _ = fs::remove_file(&nic.socket);
        }
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
            .args(["-machine", &machine(&parts.accel)])
            .args(["-m", &parts.memory_mb.to_string()])
            .args(["-smp", &parts.cpus.to_string()])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=ram,size={}M,mem-path={},share=on",
                parts.memory_mb,
                memory.display()
            ))
            .arg("-kernel")
            .arg(&parts.image.kernel)
            .arg("-initrd")
            .arg(&parts.image.initrd)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on fv.name=vm",
            ])
            .arg("-serial")
            .arg(format!("file:{}", file("kernel").display()))
            .arg("-serial")
            .arg(format!("unix:{},server=on,wait=off", serial.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", control.display()))
            .arg("-chardev")
            .arg(chardev(nic))
            .arg("-netdev")
            .arg(format!(
                "vhost-user,id=net0,chardev=vhost0,queues={}",
                nic.queues
            ))
            .arg("-device")
            .arg(device(nic));
        if parts.accel == Accel::Kvm {
            command.args(["-cpu", "host"]);
        }
        if incoming {
            command
                .arg("-incoming")
                .arg(format!("unix:{}", migration.display()));
        }
        let daemon = Daemon::start(run, &format!("qemu-{}", parts.name), &mut command)?;
        let control = wait_for("QEMU's answer", LIMIT, || {
            daemon.check()?;
            Control::connect(&control)
        })?;
        Ok(Qemu {
            daemon,
            control,
            console: None,
            serial,
            incoming: migration,
            memory,
            made: nic.listens.then(|| nic.socket.clone()),
            _memory: undo,
        })
    }

    /// Lets the guest run.
    pub fn proceed(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Executes a command of the QEMU machine protocol.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let done = self.control.execute(command, arguments);
        done.with_context(|| format!("QEMU's last words: {}", self.daemon.log_tail(5)))
    }

    /// Lets the guest reboot itself, and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        self.expect("(sleep 1; reboot -f) >/dev/null 2>&1 &")?;
        let console = self.console.as_mut().context("The guest has no console")?;
        console
            .wait_until_ready(BOOT_LIMIT)
            .context("The guest did not boot again")
    }

    /// Runs a shell command in the guest, which must succeed; what it wrote.
    pub fn expect(&mut self, command: &str) -> Result<String> {
        let output = self.run_for(command, Duration::from_secs(60))?;
        match output.ok() {
            true => Ok(output.text),
            false => bail!("In the guest, \"{command}\": {output}"),
        }
    }

    /// Runs a shell command in the guest, at most `limit`.
    pub fn run_for(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let console = self.console.as_mut();
        console
            .context("The guest has no console")?
            .run(command, limit)
    }

    /// Begins to move the guest to `to`, at most so many bytes a second.
    pub fn migrate(&mut self, to: &Qemu, bandwidth: u64) -> Result<()> {
        let limits = json!({ "max-bandwidth": bandwidth, "downtime-limit": 300 });
        self.execute("migrate-set-parameters", limits)?;
        let uri = format!("unix:{}", to.incoming.display());
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// What QEMU says of the migration.
    pub fn migration(&mut self) -> Result<Value> {
        self.execute("query-migrate", json!({}))
    }

    /// Waits until the migration has this status.
    pub fn wait_migration(&mut self, status: &str, limit: Duration) -> Result<Value> {
        wait_for(&format!("the migration being {status}"), limit, || {
            let now = self.migration()?;
            match now["status"].as_str() {
                Some(is) if is == status => Ok(now),
                _ => bail!("It is {now}"),
            }
        })
    }

    /// Takes the guest's console over from the QEMU that the guest was in.
    pub fn take_console(&mut self, from: &mut Qemu) -> Result<()> {
        let old = from.console.take().context("The guest has no console")?;
        self.console = Some(old.moved(&self.serial)?);
        Ok(())
    }

    /// The guest's memory, as the file that it is.
    pub fn memory(&self) -> Result<Vec<u8>> {
        fs::read(&self.memory).context("The guest's memory cannot be read")
    }

    /// Fails when it is not running any more.
    pub fn check(&self) -> Result<()> {
        self.daemon.check()
    }

    /// Kills it without warning.
    pub fn kill(&self) {
        self.daemon.kill();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.daemon.kill();
        if let Some(socket) = &self.made {
            let _ = fs::remove_file(socket);
        }
    }
}

fn machine(accel: &Accel) -> String {
    let accel = match accel {
        Accel::Kvm => "kvm",
        Accel::Software(_) => "tcg",
    };
    format!("q35,accel={accel},memory-backend=ram")
}

fn chardev(nic: &Nic) -> String {
    let socket = nic.socket.display();
    match nic.listens {
        true => format!("socket,id=vhost0,path={socket},server=on"),
        false => format!("socket,id=vhost0,path={socket},reconnect-ms=100"),
    }
}

fn device(nic: &Nic) -> String {
    let mut text = format!("virtio-net-pci,netdev=net0,mac={},romfile=", nic.mac);
    if nic.queues > 1 {
        text.push_str(&format!(",mq=on,vectors={}", 2 * nic.queues + 2));
    }
    for property in &nic.properties {
        text.push(',');
        text.push_str(property);
    }
    text
}

/// QEMU's machine protocol: a line of JSON in, a line of JSON out, events in between.
#[derive(Debug)]
struct Control {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Control {
    fn connect(path: &std::path::Path) -> Result<Control> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut control = Control { stream, lines };
        // The greeting.
        control.line()?;
        control.execute("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        let read = self.lines.read_line(&mut text);
        match read.context("QEMU does not answer")? {
            0 => bail!("QEMU has ended"),
            _ => Ok(serde_json::from_str(&text)?),
        }
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let said = self.line()?;
            if let Some(error) = said.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(answer) = said.get("return") {
                return Ok(answer.clone());
            }
        }
    }
}
