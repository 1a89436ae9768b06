//! The oracle of snapshots: which of them there may be, and what each holds. It knows no engine.
//!
//! A snapshot's contents are what a read of the whole disk could have given between the call and its return; once they have
//! been looked at they never change. One whose creation or deletion has failed or was dropped may be there after a power
//! loss, whatever the guest sees, until a flush that was asked for later has returned.

use std::collections::BTreeMap;

use super::model::{Model, Tag};

/// The disk's contents at some time: a tag for each granule.
pub type Tags = Vec<Tag>;

/// What is known of a snapshot's contents.
#[derive(Debug, Clone)]
enum Holds {
    /// These, exactly.
    These(Tags),
    /// What a read could give that began then.
    Since(u64),
}

#[derive(Debug, Clone)]
struct Snapshot {
    holds: Holds,
    /// The guest sees it.
    listed: bool,
    /// When it became uncertain whether a power loss leaves it, if it is.
    uncertain: Option<u64>,
}

/// The snapshots of a disk by their names.
#[derive(Debug, Clone, Default)]
pub struct Snapshots {
    all: BTreeMap<String, Snapshot>,
}

impl Snapshots {
    /// Whether the guest sees a snapshot of this name.
    pub fn is_listed(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|snapshot| snapshot.listed)
    }

    /// What one that is listed holds.
    pub fn tags(&self, name: &str) -> Option<&Tags> {
        match self.all.get(name) {
            Some(Snapshot { holds: Holds::These(tags), listed: true, .. }) => Some(tags),
            _ => None,
        }
    }

    /// One is being taken, since `started`, when a read began in the model.
    pub fn begin(&mut self, name: &str, started: u64) {
        let snapshot =
            Snapshot { holds: Holds::Since(started), listed: false, uncertain: Some(u64::MAX) };
        self.all.insert(name.to_owned(), snapshot);
    }

    /// The guest sees it now, and it holds `tags`; durably, or as long as the power does not go.
    pub fn listed(&mut self, name: &str, tags: Tags, durable: bool, now: u64) {
        let uncertain = (!durable).then_some(now);
        let snapshot = Snapshot { holds: Holds::These(tags), listed: true, uncertain };
        self.all.insert(name.to_owned(), snapshot);
    }

    /// One is being deleted: a power loss may leave it or not.
    pub fn doubt(&mut self, name: &str) {
        if let Some(snapshot) = self.all.get_mut(name) {
            snapshot.uncertain = Some(u64::MAX);
        }
    }

    /// The guest sees it, or not, after something has failed or was dropped.
    pub fn unsure(&mut self, name: &str, listed: bool, now: u64) {
        if let Some(snapshot) = self.all.get_mut(name) {
            (snapshot.listed, snapshot.uncertain) = (listed, Some(now));
        }
    }

    /// It is gone, durably.
    pub fn gone(&mut self, name: &str, model: &mut Model) {
        if let Some(Snapshot { holds: Holds::Since(started), .. }) = self.all.remove(name) {
            model.end_read(started);
        }
    }

    /// A flush that was asked for at `asked` has returned.
    pub fn flushed(&mut self, asked: u64, model: &mut Model) {
        for snapshot in self.all.values_mut() {
            snapshot.uncertain.take_if(|since| *since < asked);
        }
        self.all.retain(|_, snapshot| {
            let keeps = snapshot.listed || snapshot.uncertain.is_some();
            if let (false, Holds::Since(started)) = (keeps, &snapshot.holds) {
                model.end_read(*started);
            }
            keeps
        });
    }

    /// A flush has failed: nobody knows what is durable.
    pub fn flush_failed(&mut self, now: u64) {
        for snapshot in self.all.values_mut() {
            snapshot.uncertain.get_or_insert(now);
        }
    }

    /// What a power loss has left are the snapshots `found`. Returns what they hold.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check_crash(
        &self,
        found: &[(String, Vec<u8>)],
        model: &Model,
    ) -> Result<Vec<(String, Tags)>, String> {
        let mut left = Vec::new();
        for (name, bytes) in found {
            let Some(snapshot) = self.all.get(name) else {
                return Err(format!("there is a snapshot {name} that nobody has taken"));
            };
            let what = format!("snapshot {name}");
            left.push((
                name.clone(),
                match &snapshot.holds {
                    Holds::These(tags) => {
                        model.must_be(&what, tags, bytes)?;
                        tags.clone()
                    }
                    Holds::Since(started) => model.read_tags(&what, *started, bytes)?,
                },
            ));
        }
        for (name, snapshot) in &self.all {
            let is_found = found.iter().any(|(found, _)| found == name);
            if snapshot.listed && snapshot.uncertain.is_none() && !is_found {
                return Err(format!("snapshot {name} is gone"));
            }
        }
        Ok(left)
    }

    /// What the snapshot of this name holds, which is the only one `found`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_crash_of(
        &self,
        name: &str,
        found: &[(String, Vec<u8>)],
        model: &Model,
    ) -> Result<Tags, String> {
        let one = self.all.get(name).map(|snapshot| (name.to_owned(), snapshot.clone()));
        let mut left = Self { all: one.into_iter().collect() }.check_crash(found, model)?;
        left.pop().map(|(_, tags)| tags).ok_or_else(|| format!("there is no snapshot {name}"))
    }

    /// From now on there are these, durably.
    pub fn crash(&mut self, left: Vec<(String, Tags)>) {
        self.all.clear();
        for (name, tags) in left {
            self.listed(&name, tags, true, 0);
        }
    }
}
