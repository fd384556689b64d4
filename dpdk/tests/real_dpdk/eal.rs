//! The EAL's start: once in a process, many processes at once, nothing left behind.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use dpdk::{Eal, EalConfig, Error, Hugepages, Mempool, Port, PortConfig};

use crate::{pool, shared_eal, spawn};

const CHILD: &str = "FERROVIA_DPDK_TEST_CHILD";
const LATER: &str = "FERROVIA_DPDK_TEST_PCI_LATER";

#[test]
fn a_second_start_in_one_process_is_refused() {
    shared_eal();
    let error = Eal::init(&EalConfig::default()).unwrap_err();
    assert!(matches!(error, Error::AlreadyStarted), "{error}");
}

#[test]
fn the_start_leaves_the_callers_affinity_and_signals_alone() {
    if std::env::var_os(CHILD).is_some() {
        let (affinity, signals) = (status_line("Cpus_allowed:"), status_line("SigBlk:"));
        Eal::init(&small()).unwrap();
        assert_eq!(affinity, status_line("Cpus_allowed:"));
        assert_eq!(signals, status_line("SigBlk:"));
        // A signal to the process must find none of DPDK's threads willing.
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap();
            if name.starts_with("eal-") || name.starts_with("rte_") || name.starts_with("dpdk-") {
                let status = std::fs::read_to_string(task.path().join("status")).unwrap();
                let blocked = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigBlk:"))
                    .unwrap()
                    .trim()
                    .to_owned();
                // SIGTERM is 15.
                assert_ne!(
                    u64::from_str_radix(&blocked, 16).unwrap() & (1 << 14),
                    0,
                    "{name}"
                );
            }
        }
        return;
    }
    let output = output(&mut child(
        "eal::the_start_leaves_the_callers_affinity_and_signals_alone",
    ));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn two_processes_run_at_once_say_nothing_and_leave_nothing() {
    if std::env::var_os(CHILD).is_some() {
        let eal = Eal::init(&small()).unwrap();
        let pool = Mempool::new(&eal, "child", 256, 2048, None).unwrap();
        let port = Port::attach(&eal, "net_null0").unwrap();
        port.configure(&PortConfig::new(pool)).unwrap();
        port.start().unwrap();
        println!("{{running}}");
        std::io::stdout().flush().unwrap();
        // Until the parent is done with both.
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        return;
    }
    let before = leftovers();
    let mut children: Vec<Child> = (0..2)
        .map(|_| {
            spawn(
                child("eal::two_processes_run_at_once_say_nothing_and_leave_nothing")
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped()),
            )
        })
        .collect();
    for child in &mut children {
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("{running}")),
            "a child did not start"
        );
    }
    // One ends well, the other is killed.
    let mut killed = children.pop().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let mut asked = children.pop().unwrap();
    asked.stdin.take().unwrap().write_all(b"end\n").unwrap();
    let output = asked.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "",
        "DPDK wrote to stderr"
    );
    assert_eq!(leftovers(), before);
}

#[test]
fn hugepages_are_used_when_there_are_some() {
    if std::env::var_os(CHILD).is_some() {
        let config = EalConfig {
            hugepages: Hugepages::Require,
            ..small()
        };
        let eal = Eal::init(&config).unwrap();
        assert!(eal.hugepages());
        let pool = Mempool::new(&eal, "huge", 1024, 2048, None).unwrap();
        assert_eq!(pool.alloc().unwrap().tailroom(), 2048);
        // Mapped from the kernel's pool of hugepages, and from no file in a hugetlbfs.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mapped = status
            .lines()
            .find_map(|line| line.strip_prefix("HugetlbPages:"))
            .unwrap();
        let kb: u64 = mapped.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kb >= 32 * 1024, "{mapped}");
        return;
    }
    let before = leftovers();
    let reserved = Reserved::pages(24);
    let output = output(&mut child("eal::hugepages_are_used_when_there_are_some"));
    drop(reserved);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(leftovers(), before);
}

/// Hugepages of 2 MB added to the kernel's pool, and taken away again.
struct Reserved {
    pages: i64,
}

impl Reserved {
    fn pages(pages: i64) -> Reserved {
        change_pool(pages);
        Reserved { pages }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        change_pool(-self.pages);
    }
}

/// Others may do the same at the same time, hence the lock, and a change instead of a number.
fn change_pool(by: i64) {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    let lock = std::fs::File::create("/run/lock/ferrovia-test-hugepages").unwrap();
    lock.lock().unwrap();
    let now: i64 = std::fs::read_to_string(POOL)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    std::fs::write(POOL, (now + by).max(0).to_string()).unwrap();
}

#[test]
fn missing_hugepages_are_taken_or_named() {
    let config = EalConfig {
        hugepages: Hugepages::Require,
        memory_mb: Some(u32::MAX),
        ..EalConfig::default()
    };
    // Judged before DPDK is touched, so the process's one start is not spent.
    let text = Eal::init(&config).unwrap_err().to_string();
    assert!(
        text.contains("hugepages are required") && text.contains("nr_hugepages"),
        "{text}"
    );
}

#[test]
fn a_registered_threads_cache_goes_back_when_it_ends() {
    let pool = pool(512, 2048);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guard = shared_eal().register_thread().unwrap();
            assert!(shared_eal().register_thread().is_err(), "registered twice");
            drop((0..10).map(|_| pool.alloc().unwrap()).collect::<Vec<_>>());
            drop(guard);
        });
    });
    // This thread is not registered, so it sees only the shared ring.
    let all: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!(all.len(), 512);
    assert_eq!(pool.available(), 0);
}

/// A disk's or USB's controller with a driver of the kernel: no driver of DPDK would touch it.
fn controller() -> Option<String> {
    let devices = std::fs::read_dir("/sys/bus/pci/devices").ok()?;
    let found = devices.flatten().find(|device| {
        let class = std::fs::read_to_string(device.path().join("class"));
        let ours =
            class.is_ok_and(|class| class.starts_with("0x01") || class.starts_with("0x0c03"));
        ours && device.path().join("driver").exists()
    })?;
    found.file_name().into_string().ok()
}

#[test]
fn pci_devices_that_may_come_later_are_found_when_they_are_asked_for() {
    if std::env::var_os(CHILD).is_some() {
        let later = std::env::var_os(LATER).is_some();
        let config = EalConfig {
            pci_later: later,
            ..small()
        };
        let eal = Eal::init(&config).unwrap();
        let attach = |device: &str| Port::attach(&eal, device).unwrap_err().to_string();
        assert!(attach("0000:ff:1f.7").contains("Cannot find device"));
        if let Some(controller) = controller() {
            let error = attach(&controller);
            assert_eq!(!error.contains("Cannot find device"), later, "{error}");
        }
        // Nothing was taken, and the rest works.
        Port::attach(&eal, "net_null0").unwrap();
        return;
    }
    let name = "eal::pci_devices_that_may_come_later_are_found_when_they_are_asked_for";
    for later in [false, true] {
        let mut command = child(name);
        if later {
            command.env(LATER, "1");
        }
        let output = output(&mut command);
        assert!(output.status.success(), "{later}: {output:?}");
    }
}

#[test]
fn the_clock_runs() {
    shared_eal();
    let (start, hz) = (dpdk::cycles(), dpdk::cycles_hz());
    std::thread::sleep(std::time::Duration::from_millis(20));
    let passed = dpdk::cycles() - start;
    assert!(hz > 1_000_000, "{hz} Hz");
    assert!(
        passed > hz / 1000 * 19,
        "{passed} cycles in 20 ms at {hz} Hz"
    );
    assert!(dpdk::version().starts_with("DPDK "));
}

fn small() -> EalConfig {
    EalConfig {
        program: "dpdk-child".to_owned(),
        memory_mb: Some(32),
        hugepages: Hugepages::Never,
        ..EalConfig::default()
    }
}

fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1");
    command
}

fn output(command: &mut Command) -> Output {
    let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    child.wait_with_output().unwrap()
}

fn status_line(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    status
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap()
        .to_owned()
}

/// What DPDK is known to leave on a host.
fn leftovers() -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["/run/dpdk", "/var/run/dpdk", "/dev/hugepages", "/tmp/dpdk"] {
        match std::fs::read_dir(folder) {
            Ok(entries) => names.extend(
                entries
                    .flatten()
                    .map(|entry| entry.path().display().to_string()),
            ),
            Err(_) => names.push(format!("no {folder}")),
        }
    }
    names.sort();
    names
}
