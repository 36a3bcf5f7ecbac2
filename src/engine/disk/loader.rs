//! Reads states from the store.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Arc;
use std::thread;

use super::{Namespace, Shared};
use crate::cache::image::ImageError;
use crate::cache::store::{Hit, ReadError};
use crate::cache::Snapshot;

/// What is to be read.
pub(super) struct Order {
    /// For whom.
    pub job: u64,
    pub namespace: Namespace,
    /// The tokens of the hit.
    pub tokens: Vec<u32>,
    /// A state in memory whose first tokens are the same, and how many: their pages are not read
    /// again.
    pub shared: Option<(Arc<Snapshot>, usize)>,
    pub hit: Hit,
}

/// What became of it.
pub(in crate::engine) struct Loaded {
    /// For whom it was read.
    pub job: u64,
    pub namespace: Namespace,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The state after them, or why there is none.
    pub state: Result<Arc<Snapshot>, LoadError>,
}

/// Why a state that was found could not be had.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum LoadError {
    /// The next lookup finds what is left without it.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The same lookup would find the same again.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A defect of this program.
    #[error("this program made an error while it read a state; please report it")]
    Panicked,
}

/// The thread that reads.
pub(super) struct Loader {
    orders: Sender<Order>,
    loaded: Receiver<Loaded>,
}

impl Loader {
    pub fn start(shared: Shared) -> std::io::Result<Self> {
        let (orders, incoming) = mpsc::channel();
        let (outgoing, loaded) = mpsc::channel();
        // It ends when nobody can order any more.
        thread::Builder::new().name("kv-loader".to_owned()).spawn(move || {
            for order in incoming {
                if outgoing.send(load(&shared, order)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { orders, loaded })
    }

    pub fn load(&self, order: Order) {
        // The thread lives as long as this.
        let _ = self.orders.send(order);
    }

    pub fn next(&self) -> Option<Loaded> {
        self.loaded.try_recv().ok()
    }
}

fn load(shared: &Shared, order: Order) -> Loaded {
    // A job waits for the answer, whatever it is.
    let state = catch_unwind(AssertUnwindSafe(|| read(shared, &order)));
    let state = state.unwrap_or(Err(LoadError::Panicked)).map(Arc::new);
    let Order { job, namespace, tokens, .. } = order;
    Loaded { job, namespace, tokens, state }
}

pub(super) fn read(shared: &Shared, order: &Order) -> Result<Snapshot, LoadError> {
    let Shared { layout, device, .. } = shared;
    let (hit, len) = (&order.hit, order.tokens.len());
    let mut restore = match &order.shared {
        Some((state, same)) => {
            let pages = layout.pages(*same).min(hit.pages());
            layout.restore_on(state, pages, len, device)?
        }
        None => layout.restore(len, device)?,
    };
    // All of it is looked at in any case: what is damaged is then out of the way, and written anew.
    let frontier = hit.frontier();
    let first = restore.next_page().unwrap_or(hit.pages());
    let pages = first..hit.pages();
    let taken =
        hit.read_pages(pages.clone(), |_, rows| restore.push(rows).map_err(LoadError::from));
    if let Err(error) = taken {
        let mut rows = vec![0; layout.page_bytes()];
        for page in pages {
            let _ = hit.read_page(page, &mut rows);
        }
        return Err(error);
    }
    Ok(restore.finish(&frontier?.state)?)
}
