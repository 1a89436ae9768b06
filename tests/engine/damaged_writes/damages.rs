//! What can be wrong with an image so that a writer is fooled.

use super::bases::{Base, FRESH, KEPT, PACKED, REWRITTEN};
use crate::support::data::Choices;
use crate::support::tables::{COMPRESSED, COPIED, OFFSET, Tables};

/// A damaged image.
pub struct Damage {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Every damage of a base.
pub fn damages(base: &Base) -> Vec<Damage> {
    let mut damages = Vec::new();
    let mut add = |name: String, change: &dyn Fn(&mut Tables)| {
        let mut tables = base.tables.clone();
        change(&mut tables);
        damages.push(Damage { name: format!("{}: {name}", base.name), bytes: tables.bytes });
    };
    let t = &base.tables;
    let size = t.cluster_size();
    let entry = |guest: u64| t.entry_of(t.l1(), guest).unwrap();
    let host = |guest: u64| t.word(entry(guest)) & OFFSET;
    let snapshot_l1 = t.word(t.snapshots());
    let places = [
        ("header", 0),
        ("refcount table", t.refcount_table()),
        ("refcount block", t.refcount_block(0)),
        ("L1 table", t.l1()),
        ("L2 table", t.l2(t.l1(), 0)),
        ("snapshot table", t.snapshots()),
        ("snapshot L1 table", snapshot_l1),
        ("snapshot L2 table", t.l2(snapshot_l1, 0)),
        ("data", host(FRESH)),
        ("shared data", host(KEPT)),
        ("data of the snapshot", t.word(t.entry_of(snapshot_l1, REWRITTEN).unwrap()) & OFFSET),
        ("compressed data", t.word(entry(PACKED)) & ((1 << 48) - 1)),
    ];
    for (name, place) in places {
        let cluster = t.cluster(place);
        add(format!("refcount of {name} is 0"), &|t| t.set_refcount(cluster, 0));
    }
    add("refcount of shared data is 1".into(), &|t| {
        t.set_refcount(t.cluster(host(KEPT)), 1);
    });
    add("every refcount is 0".into(), &|t| {
        (0..t.clusters()).for_each(|cluster| t.set_refcount(cluster, 0));
    });
    add("refcount block is missing".into(), &|t| t.put(t.refcount_table(), 0));

    for (name, place) in places {
        if place == 0 {
            continue;
        }
        let place = place / size * size;
        for (flag, word) in [("copied", place | COPIED), ("not copied", place)] {
            add(format!("data entry points to {name}, {flag}"), &|t| t.put(entry(FRESH), word));
        }
        add(format!("L1 entry points to {name}"), &|t| {
            let last = t.l1() + (t.l1_entries() - 1) * 8;
            t.put(last, place | COPIED);
        });
        add(format!("refcount table entry points to {name}"), &|t| {
            t.put(t.refcount_table() + 8, place);
        });
        add(format!("only refcount table entry points to {name}"), &|t| {
            t.put(t.refcount_table(), place);
        });
        add(format!("snapshot's L1 table is {name}"), &|t| t.put(t.snapshots(), place));
        add(format!("snapshot table is {name}"), &|t| t.put(64, place));
        add(format!("L1 table is {name}"), &|t| t.put(40, place));
        add(format!("refcount table is {name}"), &|t| t.put(48, place));
        add(format!("compressed entry points to {name}"), &|t| {
            t.put(entry(FRESH), COMPRESSED | (place + 100));
        });
    }
    add("compressed entry points to header".into(), &|t| t.put(entry(FRESH), COMPRESSED | 8));
    for (name, refcount) in [("one", 1), ("two", 2)] {
        add(format!("two entries share a cluster with refcount {name}"), &|t| {
            t.put(entry(FRESH + 1), host(FRESH) | COPIED);
            t.set_refcount(t.cluster(host(FRESH)), refcount);
        });
    }
    add("two entries share a cluster without copied flags".into(), &|t| {
        t.put(entry(FRESH), host(FRESH));
        t.put(entry(FRESH + 1), host(FRESH));
    });
    add("copied flag on data of the snapshot".into(), &|t| {
        t.put(entry(KEPT), host(KEPT) | COPIED);
    });
    add("copied flag on the snapshot's L2 table".into(), &|t| {
        let table = t.l2(snapshot_l1, 0);
        t.put(t.l1(), table | COPIED);
    });
    let end = t.clusters() * size;
    for (name, place) in [
        ("the end", end),
        ("the end and one", end + size),
        ("the end and two", end + 2 * size),
        ("far behind the end", end + (1 << 40)),
    ] {
        add(format!("data lies at {name}"), &|t| t.put(entry(FRESH), place | COPIED));
        add(format!("data lies at {name}, twice"), &|t| {
            t.put(entry(FRESH), place | COPIED);
            t.put(entry(FRESH + 1), place | COPIED);
        });
        add(format!("L2 table lies at {name}"), &|t| t.put(t.l1(), place | COPIED));
        add(format!("refcount block lies at {name}"), &|t| t.put(t.refcount_table() + 8, place));
        add(format!("compressed data lies at {name}"), &|t| {
            t.put(entry(FRESH), COMPRESSED | (place + 5));
        });
    }
    add("data entry is not aligned".into(), &|t| {
        t.put(entry(FRESH), (host(FRESH) + 512) | COPIED | (u64::from(size == 512) << 8));
    });
    add("L1 entry has reserved bits".into(), &|t| t.put(t.l1(), t.word(t.l1()) | 0x7f << 56));
    add("one snapshot more".into(), &|t| t.put_half(60, t.half(60) + 1));
    add("snapshot with a larger L1 table".into(), &|t| {
        t.put_half(t.snapshots() + 8, 1 << 20);
    });
    add("file is cut".into(), &|t| t.bytes.truncate((end - size * 3 / 2) as usize));
    damages
}

/// Words of tables changed to other plausible words.
pub fn random_damage(base: &Base, seed: u64) -> Damage {
    let mut choices = Choices::new(seed);
    let mut tables = base.tables.clone();
    let (size, clusters) = (tables.cluster_size(), tables.clusters());
    let snapshot_l1 = tables.word(tables.snapshots());
    let mut name = format!("{}: seed {seed}", base.name);
    for _ in 0..choices.between(1, 4) {
        let t = &tables;
        let metadata = [
            t.refcount_table(),
            t.refcount_block(0),
            t.l1(),
            t.l2(t.l1(), 0),
            t.l2(snapshot_l1, 0),
            t.snapshots(),
            snapshot_l1,
        ];
        let place = metadata[choices.below(metadata.len() as u64) as usize];
        // Most of a table is empty: its start is not.
        let words = if choices.below(2) == 0 { size / 8 } else { 16 };
        let at = (place + choices.below(words) * 8).min(t.len() / 8 * 8 - 8);
        let old = t.word(at);
        let cluster = choices.below(clusters + 3) * size;
        let new = match choices.below(8) {
            0 => 0,
            1 => old ^ (1 << choices.below(64)),
            2 => old ^ COPIED,
            3 => COMPRESSED | (cluster + choices.below(size)),
            4 => cluster,
            5 => choices.next(),
            _ => cluster | COPIED,
        };
        name += &format!(", {old:#x} at {at:#x} is {new:#x}");
        tables.put(at, new);
    }
    Damage { name, bytes: tables.bytes }
}
