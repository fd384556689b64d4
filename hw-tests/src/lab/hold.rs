//! One run at a time on a host: while a run uses a host, a file on the host says so, and another run waits.
//!
//! The file is read and written under flock(2), and holds one line: who holds the host, until when at most, and
//! by which process. A run that was killed leaves its line behind; it does not count any more when its time is
//! over, or when its process ran on the host itself and is gone. Machines of our own need no such file.

use super::target::{LinkError, Target};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the small scripts here may take.
const SHORT: Duration = Duration::from_secs(30);
/// How often a run that waits looks again.
const PAUSE: Duration = Duration::from_millis(500);
/// What a run may take longer than its target's limit: the last test, and putting everything back.
const LONGER: Duration = Duration::from_secs(900);

/// The host is this run's until [`release`](Hold::release).
#[derive(Debug)]
pub struct Hold {
    target: Arc<Target>,
}

impl Hold {
    /// Takes the host, for at most `time`; waits up to `wait` while another run has it.
    ///
    /// # Errors
    /// When another run still has it then (the sentence says who), or the target does not answer.
    pub fn take(target: &Arc<Target>, time: Duration, wait: Duration) -> Result<Hold, LinkError> {
        let hold = Hold {
            target: target.clone(),
        };
        if target.is_ours() {
            return Ok(hold);
        }
        let end = Instant::now() + wait;
        loop {
            let seconds = (time + LONGER).as_secs();
            let script = format!("{FILE}\n{}", take_script(&hold.token(), seconds));
            let done = target.quiet(&script, SHORT)?;
            match done.code {
                0 => return Ok(hold),
                HELD if Instant::now() < end => std::thread::sleep(PAUSE),
                HELD => {
                    return Err(LinkError::Broken(format!(
                        "Another run uses this host: {}. Wait for its end, or run that suite on other targets",
                        done.stdout.trim()
                    )));
                }
                _ => {
                    return Err(LinkError::Broken(format!(
                        "Whether another run uses this host cannot be found out: {}",
                        done.said()
                    )));
                }
            }
        }
    }

    /// Gives the host to others.
    pub fn release(&self) {
        if !self.target.is_ours() {
            let script = format!("{FILE}\n{}", release_script(&self.token()));
            let _ = self.target.quiet(&script, SHORT);
        }
    }

    /// No other run has the same: mark, process and machine.
    fn token(&self) -> String {
        format!("{}@{}", self.target.mark(), boot())
    }
}

/// The running system that this process belongs to.
fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The exit code for "another run has it".
const HELD: i32 = 75;

/// Opens and locks the file. Root's lies in `/run`, which no other account can write and no boot survives.
const FILE: &str = r#"
if [ "$(id -u)" = 0 ] && [ -d /run ]; then f=/run/ferrovia-lab.lock; else f=/var/tmp/ferrovia-lab-$(id -u).lock; fi
exec 9<>"$f" || exit 1
flock -w 20 9 || { echo "\"$f\" is locked" >&2; exit 1; }
"#;

fn take_script(token: &str, seconds: u64) -> String {
    format!(
        r#"
read -r token until pid boot who < "$f"
now=$(date +%s)
free=
[ -z "$token" ] && free=yes
[ "$token" = '{token}' ] && free=yes
[ "${{until:-0}}" -lt "$now" ] 2>/dev/null && free=yes
[ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] && [ ! -d "/proc/$pid" ] && free=yes
[ -n "$free" ] || {{ echo "$who (process $pid), says \"$f\""; exit {HELD}; }}
echo '{token}' $((now + {seconds})) {pid} '{boot}' "the run of {who} since $(date '+%F %T %Z')" > "$f"
"#,
        pid = std::process::id(),
        boot = boot(),
        who = runner(),
    )
}

/// Emptied, not removed: who waits has it open.
fn release_script(token: &str) -> String {
    format!("read -r first rest < \"$f\"\n[ \"$first\" != '{token}' ] || : > \"$f\"\n")
}

/// Who we are, for others: nothing that a shell would understand.
fn runner() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    let user = user.ok().flatten().map_or("?".into(), |user| user.name);
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.@".contains(*c);
    format!("{user}@{}", host.to_string_lossy())
        .chars()
        .filter(plain)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    /// Runs a script on a file of the test's own.
    fn sh(file: &Path, script: &str) -> (i32, String) {
        let open = FILE.lines().filter(|line| !line.contains("id -u"));
        let open: Vec<&str> = open.collect();
        let script = format!("f='{}'\n{}\n{script}", file.display(), open.join("\n"));
        let done = Command::new("sh").args(["-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        (done.status.code().unwrap(), said)
    }

    #[test]
    fn a_second_run_is_refused_until_the_first_gives_up_or_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lock");
        assert_eq!(sh(&file, &take_script("one", 60)).0, 0);
        assert_eq!(sh(&file, &take_script("one", 60)).0, 0, "its own again");
        let (code, said) = sh(&file, &take_script("two", 60));
        assert!(code == HELD && said.contains(&runner()), "{code}: {said}");
        assert_eq!(sh(&file, &release_script("two")).0, 0);
        assert_eq!(
            sh(&file, &take_script("two", 60)).0,
            HELD,
            "only the holder releases it"
        );
        assert_eq!(sh(&file, &release_script("one")).0, 0);
        assert_eq!(sh(&file, &take_script("two", 60)).0, 0);

        let never = "three 99999999999 4194999 no-such-boot somebody";
        std::fs::write(&file, never).unwrap();
        assert_eq!(sh(&file, &take_script("two", 60)).0, HELD);
        let over = "three 1 4194999 no-such-boot somebody";
        let gone = format!("three 99999999999 4194999 {} somebody", boot());
        for stale in [over, &gone, "", "\n"] {
            std::fs::write(&file, stale).unwrap();
            assert_eq!(sh(&file, &take_script("two", 60)).0, 0, "{stale}");
        }
    }
}
