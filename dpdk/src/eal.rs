//! The environment abstraction layer (EAL): DPDK's start in this process.
//!
//! The EAL is started so that a host notices nothing of it:
//! - `--in-memory` (`--no-shconf` without hugepages): no files below `/run/dpdk`, none in a hugetlbfs, no IPC socket; any number of
//!   processes run at once, and nothing is left after `kill -9`.
//! - `--no-telemetry`: no telemetry socket, which several processes would fight for.
//! - one EAL core only, floating over the CPUs that are allowed: this project's workers are its own
//!   threads, which register themselves (see [`Eal::register_thread`]).
//! - `rte_eal_init` runs in a thread of its own that ends afterwards, with all signals blocked: it
//!   pins the thread that calls it, makes it the "main lcore" and hands its signal mask on to DPDK's
//!   interrupt thread. None of that should happen to the program's main thread.
//! - PCI devices are not even scanned unless some are named in [`EalConfig::pci`], or
//!   [`EalConfig::pci_later`] is set: DPDK would otherwise take every device that is bound to a
//!   userspace driver, also those of other programs.
//!
//! `rte_eal_cleanup` is never called: mbufs and queues may live until the process ends, and with
//! `--in-memory` the kernel takes everything back by itself.

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::descriptors::closing_on_exec;
use crate::hugepages::{self, Hugepages};
use crate::{Error, ffi, log};

/// A PCI address that no machine has: Linux numbers domains with 31 bits. A list of the devices that
/// DPDK may probe at start needs an entry to be a list.
const NOBODY: &str = "ffffffff:ff:1f.7";

/// Memory when the configuration names none, in MB.
const DEFAULT_MEMORY_MB: u32 = 256;

static STARTED: AtomicBool = AtomicBool::new(false);

/// How the EAL is started.
#[derive(Debug, Clone)]
pub struct EalConfig {
    /// The program's name (`argv[0]`), which DPDK puts before its messages.
    pub program: String,
    /// CPUs that DPDK's own threads (interrupts, control) float on; all of the process's when
    /// `None`. Workers are not meant: they are the caller's threads and pin themselves.
    pub cores: Option<Vec<usize>>,
    /// Memory to take at start, in MB (256 when `None`). Without hugepages this is all there will be;
    /// with hugepages DPDK takes more when pools need it and pages are free.
    pub memory_mb: Option<u32>,
    /// Whether hugepages are used.
    pub hugepages: Hugepages,
    /// PCI devices (`0000:3b:00.2`, with devargs if wanted) that may be attached. DPDK probes them
    /// at start. No PCI bus at all when empty.
    pub pci: Vec<String>,
    /// Whether PCI devices may be attached by [`crate::Port::attach`] that are not in
    /// [`EalConfig::pci`]. The bus is scanned then; nothing but what is named there is probed at start.
    pub pci_later: bool,
    /// Further EAL arguments, after ours.
    pub extra: Vec<String>,
}

impl Default for EalConfig {
    fn default() -> Self {
        EalConfig {
            program: "ferrovia".to_owned(),
            cores: None,
            memory_mb: None,
            hugepages: Hugepages::Auto,
            pci: Vec::new(),
            pci_later: false,
            extra: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Facts {
    hugepages: bool,
    memory_mb: u32,
}

/// The running EAL: proof that DPDK may be called. Cheap to clone; lives as long as the process.
#[derive(Debug, Clone)]
pub struct Eal {
    facts: Arc<Facts>,
}

impl Eal {
    /// Starts the EAL. Once in a process: a second call fails with [`Error::AlreadyStarted`], also
    /// when the first one failed inside DPDK.
    pub fn init(config: &EalConfig) -> Result<Eal, Error> {
        let memory_mb = config.memory_mb.unwrap_or(DEFAULT_MEMORY_MB);
        let huge = choose_memory(config.hugepages, memory_mb)?;
        let cores = usable_cores(config.cores.as_deref())?;
        let arguments = arguments(config, memory_mb, huge, &cores)?;

        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(Error::AlreadyStarted);
        }
        log::open();
        tracing::debug!(?arguments, "starting DPDK's EAL");
        let thread = std::thread::Builder::new()
            .name("eal-init".to_owned())
            .spawn(move || init_in_this_thread(arguments))
            .map_err(Error::Thread)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::Eal("its start panicked".to_owned())))?;
        Ok(Eal {
            facts: Arc::new(Facts {
                hugepages: huge,
                memory_mb,
            }),
        })
    }

    /// Whether DPDK's memory is in hugepages.
    pub fn hugepages(&self) -> bool {
        self.facts.hugepages
    }

    /// Memory taken at start, in MB.
    pub fn memory_mb(&self) -> u32 {
        self.facts.memory_mb
    }

    /// Registers the calling thread with DPDK until the guard is dropped, which gives it caches of
    /// its own in every mempool. A worker does this after it pinned itself. A thread that is not
    /// registered can do the same things, only slower: its buffers come straight from the pool's
    /// shared ring.
    pub fn register_thread(&self) -> Result<ThreadGuard, Error> {
        // SAFETY: the EAL runs; reads a thread-local variable.
        if unsafe { ffi::fv_lcore_id() } >= 0 {
            return Err(Error::Register("it is registered already".to_owned()));
        }
        // SAFETY: the EAL runs, and this thread is not yet registered.
        if unsafe { ffi::fv_thread_register() } != 0 {
            return Err(Error::Register(ffi::strerror(ffi::errno())));
        }
        Ok(ThreadGuard {
            _this_thread_only: PhantomData,
        })
    }
}

/// DPDK's own version, like "DPDK 22.11.11".
pub fn version() -> String {
    // SAFETY: returns a static NUL-terminated string, with or without a running EAL.
    unsafe { CStr::from_ptr(ffi::fv_version()) }
        .to_string_lossy()
        .into_owned()
}

/// The time stamp counter: the cheapest clock there is, for measuring work.
#[inline]
pub fn cycles() -> u64 {
    // SAFETY: reads a CPU register.
    unsafe { ffi::fv_cycles() }
}

/// Time stamp counter ticks a second; 0 before the EAL runs.
pub fn cycles_hz() -> u64 {
    // SAFETY: reads a variable that the EAL's start sets.
    unsafe { ffi::fv_cycles_hz() }
}

/// A registered thread; see [`Eal::register_thread`]. Stays on its thread.
#[derive(Debug)]
pub struct ThreadGuard {
    _this_thread_only: PhantomData<*const ()>,
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        // SAFETY: the guard is not Send, so this is the thread that registered; it holds no DPDK
        // lock here. The buffers in its caches go back to their pools first.
        unsafe { ffi::fv_thread_unregister() }
    }
}

fn choose_memory(wanted: Hugepages, memory_mb: u32) -> Result<bool, Error> {
    let wanted_mb = u64::from(memory_mb);
    let free_mb = hugepages::free_mb();
    match wanted {
        Hugepages::Never => Ok(false),
        Hugepages::Auto => Ok(free_mb >= wanted_mb),
        Hugepages::Require if free_mb >= wanted_mb => Ok(true),
        Hugepages::Require => Err(Error::Hugepages {
            wanted_mb,
            free_mb,
            pages: wanted_mb.div_ceil(2),
        }),
    }
}

/// The CPUs that this process may use, cut to those that are wanted.
fn usable_cores(wanted: Option<&[usize]>) -> Result<Vec<usize>, Error> {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid cpu_set_t of the size given; 0 is the calling thread.
    let known =
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } == 0;
    let allowed = |cpu: usize| {
        // SAFETY: CPU_ISSET reads inside `set`, and `cpu` is below its capacity.
        !known || (cpu < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(cpu, &set) })
    };
    let cores: Vec<usize> = match wanted {
        Some(wanted) => wanted.iter().copied().filter(|cpu| allowed(*cpu)).collect(),
        None if known => (0..libc::CPU_SETSIZE as usize)
            .filter(|cpu| allowed(*cpu))
            .collect(),
        None => vec![0],
    };
    if cores.is_empty() {
        return Err(Error::Cores(wanted.unwrap_or_default().to_vec()));
    }
    Ok(cores)
}

fn arguments(
    config: &EalConfig,
    memory_mb: u32,
    huge: bool,
    cores: &[usize],
) -> Result<Vec<CString>, Error> {
    let cores = cores
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let mut words = vec![
        config.program.clone(),
        "--no-telemetry".to_owned(),
        "--iova-mode=va".to_owned(),
        // EAL core 0, on any of these CPUs.
        format!("--lcores=0@({cores})"),
        "-m".to_owned(),
        memory_mb.to_string(),
    ];
    if huge {
        words.push("--in-memory".to_owned());
    } else {
        // Implies the "legacy" memory layout, which --in-memory refuses; there are no hugepage files
        // to avoid either.
        words.extend(["--no-huge".to_owned(), "--no-shconf".to_owned()]);
    }
    match (config.pci.is_empty(), config.pci_later) {
        (true, false) => words.push("--no-pci".to_owned()),
        // What is attached at run time joins the list; without a list DPDK would take everything now.
        (true, true) => words.extend(["-a".to_owned(), NOBODY.to_owned()]),
        (false, _) => {}
    }
    for device in &config.pci {
        words.extend(["-a".to_owned(), device.clone()]);
    }
    words.extend(config.extra.iter().cloned());
    words
        .into_iter()
        .map(|word| {
            if word.is_empty() {
                Err(Error::BadText(word))
            } else {
                CString::new(word.clone()).map_err(|_| Error::BadText(word))
            }
        })
        .collect()
}

fn init_in_this_thread(arguments: Vec<CString>) -> Result<(), Error> {
    // SAFETY: fills a local set and changes only this thread's mask; DPDK's threads inherit it, so
    // that the program's signals never land on them.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    let mut argv: Vec<*mut c_char> = arguments.into_iter().map(CString::into_raw).collect();
    let argc =
        i32::try_from(argv.len()).map_err(|_| Error::Eal("too many arguments".to_owned()))?;
    argv.push(std::ptr::null_mut());
    // DPDK keeps pointers into its arguments: they live for the program.
    let argv = Box::leak(argv.into_boxed_slice());
    // SAFETY: argv is a NULL-terminated array of `argc` NUL-terminated strings that are never freed;
    // `STARTED` makes this the only call in the process.
    let (status, lines) =
        log::capture(|| closing_on_exec(|| unsafe { ffi::fv_eal_init(argc, argv.as_mut_ptr()) }));
    if status < 0 {
        return Err(Error::Eal(log::reason(ffi::errno(), &lines)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(config: &EalConfig, huge: bool) -> Vec<String> {
        arguments(config, 64, huge, &[1, 3])
            .unwrap()
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn pci_is_off_unless_devices_are_named() {
        let mut config = EalConfig::default();
        assert!(words(&config, true).contains(&"--no-pci".to_owned()));
        config.pci = vec!["0000:3b:00.2".to_owned()];
        let words = words(&config, true);
        assert!(!words.contains(&"--no-pci".to_owned()));
        assert!(words.windows(2).any(|pair| pair == ["-a", "0000:3b:00.2"]));
    }

    #[test]
    fn pci_devices_to_come_need_a_list_that_takes_none_at_start() {
        let mut config = EalConfig {
            pci_later: true,
            ..EalConfig::default()
        };
        let later = words(&config, false);
        assert!(!later.contains(&"--no-pci".to_owned()));
        assert!(later.windows(2).any(|pair| pair == ["-a", NOBODY]));
        config.pci = vec!["0000:3b:00.2".to_owned()];
        assert!(!words(&config, false).contains(&NOBODY.to_owned()));
    }

    #[test]
    fn memory_and_cores_are_passed_on() {
        let without = words(&EalConfig::default(), false);
        assert!(without.contains(&"--no-huge".to_owned()));
        assert!(without.contains(&"--lcores=0@(1,3)".to_owned()));
        assert!(without.windows(2).any(|pair| pair == ["-m", "64"]));
        assert!(!words(&EalConfig::default(), true).contains(&"--no-huge".to_owned()));
    }

    #[test]
    fn a_nul_character_is_refused_before_anything_starts() {
        let config = EalConfig {
            extra: vec!["a\0b".to_owned()],
            ..EalConfig::default()
        };
        assert!(matches!(
            arguments(&config, 64, true, &[0]),
            Err(Error::BadText(_))
        ));
    }

    #[test]
    fn cores_outside_the_machine_are_an_error() {
        let error = usable_cores(Some(&[5000])).unwrap_err();
        assert!(matches!(error, Error::Cores(cores) if cores == [5000]));
    }

    #[test]
    fn more_required_hugepages_than_any_machine_has_is_a_sentence_with_a_way_out() {
        let error = choose_memory(Hugepages::Require, u32::MAX).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("4294967295 MB of hugepages are required"),
            "{text}"
        );
        assert!(text.contains("nr_hugepages"), "{text}");
    }
}
