//! Whatever a journal's file is cut or damaged to, it opens to a state that was true, or not at all.

use super::file;
use super::{Before, CrashPoints, Hold, JournalError, Ledger, Operation, Record, Store, Target};
use crate::allocation::{Allocation, Identity, Phase, Request, Settings};
use crate::device::{Device, VfId};
use crate::recipe::Step;
use proptest::prelude::*;
use std::path::Path;

fn device(number: u32) -> Device {
    Device::Netdevsim(number)
}

fn allocation(owner: String, serial: u64, index: u32) -> Allocation {
    Allocation {
        owner,
        serial,
        vf: VfId {
            pf: device(1),
            index,
        },
        address: None,
        pool: Some("näher".into()),
        identity: Identity::default(),
        request: Request::default(),
        settings: Settings::default(),
        driver: None,
        was_bound: false,
        phase: Phase::Configuring,
        notes: Vec::new(),
    }
}

fn record() -> impl Strategy<Value = Record> {
    let pf = (0u32..3).prop_map(device);
    let owner = (0u32..4).prop_map(|n| format!("port/{n}"));
    prop_oneof![
        "[a-f0-9]{4}".prop_map(|boot| Record::Boot { boot }),
        (pf.clone(), 0u32..9).prop_map(|(pf, count)| Record::Begin {
            pf,
            operation: Operation {
                target: Target {
                    num_vfs: count,
                    ..Target::default()
                },
                from: Before::default(),
                steps: vec![Step::Up, Step::MakeVfs(count)],
                at: 0,
                then: Hold::Made,
            },
        }),
        (pf.clone(), 0usize..3).prop_map(|(pf, at)| Record::Step { pf, at }),
        (pf.clone(), 0u32..9).prop_map(|(pf, num_vfs)| Record::End {
            pf,
            num_vfs,
            hold: Hold::Made
        }),
        pf.clone().prop_map(|pf| Record::Gone { pf }),
        pf.prop_map(|pf| Record::Disown { pf }),
        (owner.clone(), 0u64..99, 0u32..9).prop_map(|(owner, serial, index)| Record::Allocate {
            allocation: Box::new(allocation(owner, serial, index)),
        }),
        owner.clone().prop_map(|owner| Record::Phase {
            owner,
            phase: Phase::InUse
        }),
        owner.prop_map(|owner| Record::Free { owner }),
    ]
}

/// A file of these commits, and the states after each of them.
fn written(commits: &[Vec<Record>]) -> (Vec<u8>, Vec<(usize, Ledger)>) {
    let mut text = file::header().to_owned();
    let mut ledger = Ledger::default();
    let mut states = vec![(0, ledger.clone())];
    for (number, records) in commits.iter().enumerate() {
        text += &file::line(number as u64 + 1, records).unwrap();
        records.iter().for_each(|record| ledger.apply(record));
        states.push((text.len(), ledger.clone()));
    }
    (text.into_bytes(), states)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn cut_at_any_byte_it_opens_to_the_last_whole_commit(
        commits in prop::collection::vec(prop::collection::vec(record(), 1..3), 0..6)
    ) {
        let (content, states) = written(&commits);
        // The first line came with the file: a file without it was not written by us.
        let first = states.get(1).map_or(usize::MAX, |(end, _)| *end);
        for cut in 0..=content.len() {
            let read = file::read(&content[..cut], Path::new("j"));
            if cut < first {
                prop_assert!(matches!(read, Err(JournalError::Damaged { .. })), "cut at {}", cut);
                continue;
            }
            let ledger = read.unwrap();
            let (_, expected) = states.iter().rev().find(|(end, _)| *end <= cut).unwrap();
            prop_assert_eq!(&ledger, expected, "cut at {}", cut);
        }
    }

    #[test]
    fn a_changed_byte_is_found(
        commits in prop::collection::vec(prop::collection::vec(record(), 1..3), 2..5),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let (mut content, states) = written(&commits);
        let at = place.index(content.len());
        content[at] ^= 1 << bit;
        match file::read(&content, Path::new("j")) {
            Err(JournalError::Damaged { .. } | JournalError::Version { .. }) => {}
            // The last line counts as torn.
            Ok(ledger) => prop_assert_eq!(&ledger, &states[states.len() - 2].1),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = file::read(&content, Path::new("j"));
        let _ = file::read(&[file::header().as_bytes(), &content].concat(), Path::new("j"));
    }
}

#[test]
fn what_was_written_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(dir.path(), CrashPoints::never()).unwrap();
    let store = open();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let store = &store;
            scope.spawn(move || {
                let owner = format!("port/{n}");
                let allocation = Box::new(allocation(owner.clone(), n, n as u32));
                store.write(Record::Allocate { allocation }).unwrap();
                let phase = Phase::InUse;
                store.write(Record::Phase { owner, phase }).unwrap();
            });
        }
    });
    let before = store.read(Ledger::clone);
    assert_eq!(before.allocations.len(), 8);
    drop(store);
    assert_eq!(open().read(Ledger::clone), before);
    // The folder is locked, and a later version is not touched.
    let store = open();
    let locked = Store::open(dir.path(), CrashPoints::never()).err().unwrap();
    assert!(matches!(locked, JournalError::Locked { .. }), "{locked}");
    drop(store);
    std::fs::write(dir.path().join("journal"), "ferrovia-sriov-journal 2\n").unwrap();
    let error = Store::open(dir.path(), CrashPoints::never()).err().unwrap();
    assert!(matches!(error, JournalError::Version { .. }), "{error}");
}

/// What the last start wrote is one line, which no crash tears: damage to it must not be taken for a journal of
/// nothing, or every VF would be nobody's.
#[test]
fn damage_to_the_only_line_is_no_empty_journal() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), CrashPoints::never()).unwrap();
    let allocation = Box::new(allocation("port/0".into(), 1, 0));
    store.write(Record::Allocate { allocation }).unwrap();
    drop(store);
    drop(Store::open(dir.path(), CrashPoints::never()).unwrap());
    let path = dir.path().join("journal");
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 2);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 9], &whole[..9], &[]] {
        std::fs::write(&path, damaged).unwrap();
        let error = Store::open(dir.path(), CrashPoints::never()).err().unwrap();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            damaged,
            "it is left for who looks"
        );
    }
}

#[test]
fn a_long_file_is_replaced_by_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), CrashPoints::never()).unwrap();
    let mut long = allocation("port/0".into(), 1, 0);
    long.notes = vec!["x".repeat(300_000)];
    let path = dir.path().join("journal");
    let mut sizes = Vec::new();
    for _ in 0..6 {
        let allocation = Box::new(long.clone());
        store.write(Record::Allocate { allocation }).unwrap();
        sizes.push(std::fs::metadata(&path).unwrap().len());
    }
    assert!(sizes.windows(2).any(|pair| pair[1] < pair[0]), "{sizes:?}");
    drop(store);
    let store = Store::open(dir.path(), CrashPoints::never()).unwrap();
    assert_eq!(
        store.read(|ledger| ledger.allocations["port/0"].clone()),
        long
    );
}
