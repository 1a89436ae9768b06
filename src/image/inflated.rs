//! Inflated clusters that are kept, so that a guest which reads a compressed cluster piece by piece has it inflated
//! once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::format::HostOffset;
use crate::storage::Buf;

/// The least recently used inflated clusters of one layer, within a budget of bytes.
pub(crate) struct Inflated {
    clusters_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Host offset of the stream to the cluster, and when it was used last.
    clusters: BTreeMap<HostOffset, (u64, Arc<Buf>)>,
    /// The same the other way round, oldest first.
    ages: BTreeMap<u64, HostOffset>,
    /// The age of the youngest.
    now: u64,
}

impl Inflated {
    /// Keeps as many clusters of `cluster_len` bytes as fit into `len_bytes_max`, maybe none.
    pub(crate) fn new(len_bytes_max: u64, cluster_len: u64) -> Self {
        let clusters_max = usize::try_from(len_bytes_max / cluster_len).unwrap_or(usize::MAX);
        Self { clusters_max, state: Mutex::default() }
    }

    /// The cluster whose stream is at `host`, if it is here.
    pub(crate) fn find(&self, host: HostOffset) -> Option<Arc<Buf>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clusters, ages, now } = &mut *state;
        let (age, cluster) = clusters.get_mut(&host)?;
        ages.remove(age);
        *now += 1;
        *age = *now;
        ages.insert(*now, host);
        Some(Arc::clone(cluster))
    }

    /// Forgets the cluster whose stream is at `host`: another one is going to be.
    pub(crate) fn forget(&self, host: HostOffset) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((age, _)) = state.clusters.remove(&host) {
            state.ages.remove(&age);
        }
    }

    /// Forgets all clusters.
    pub(crate) fn clear(&self) {
        let old = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        drop(old);
    }

    /// Keeps `cluster`, whose stream is at `host`, and lets go of the oldest.
    pub(crate) fn keep(&self, host: HostOffset, cluster: Arc<Buf>) {
        if self.clusters_max == 0 {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clusters, ages, now } = &mut *state;
        *now += 1;
        if let Some((age, _)) = clusters.insert(host, (*now, cluster)) {
            ages.remove(&age);
        }
        ages.insert(*now, host);
        while clusters.len() > self.clusters_max {
            let Some((_, oldest)) = ages.pop_first() else { break };
            clusters.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Buf, HostOffset, Inflated};

    #[test]
    fn the_least_recently_used_cluster_goes_first() {
        let kept = Inflated::new(2 * 512 + 511, 512);
        let [a, b, c] = [512, 1024, 1536].map(HostOffset::new);
        kept.keep(a, Arc::new(Buf::zeroed(512)));
        kept.keep(b, Arc::new(Buf::zeroed(512)));
        assert!(kept.find(a).is_some());
        kept.keep(c, Arc::new(Buf::zeroed(512)));
        assert!(kept.find(a).is_some() && kept.find(c).is_some());
        assert!(kept.find(b).is_none());
    }

    #[test]
    fn a_budget_below_one_cluster_keeps_nothing() {
        let kept = Inflated::new(511, 512);
        kept.keep(HostOffset::new(512), Arc::new(Buf::zeroed(512)));
        assert!(kept.find(HostOffset::new(512)).is_none());
    }
}
