//! The configuration in force as one worker sees it.
//!
//! [`Live`] is shared by all workers, and so are the reference counts in it: a request that counted
//! itself in and out of them would fetch each from another core. A [`View`] belongs to one worker.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use forebay_model::ObjectName;
use rustc_hash::FxHashMap;

use crate::pools::Live;

/// A configuration, and names of objects in it that records can share.
#[derive(Debug)]
pub(crate) struct View {
    live: Arc<Live>,
    /// By the address of the name within `live`, which stays where it is.
    names: RefCell<FxHashMap<usize, Arc<ObjectName>>>,
}

impl Deref for View {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl View {
    fn new(live: Arc<Live>) -> Self {
        Self {
            live,
            names: RefCell::default(),
        }
    }

    /// A name that stands in this configuration, for a record. Made once per worker.
    pub(crate) fn name(&self, name: &ObjectName) -> Arc<ObjectName> {
        let mut names = self.names.borrow_mut();
        let at = std::ptr::from_ref(name).addr();
        Arc::clone(names.entry(at).or_insert_with(|| Arc::new(name.clone())))
    }
}

/// The view of a worker on the newest configuration that it has met.
#[derive(Debug)]
pub(crate) struct Newest(RefCell<Rc<View>>);

impl Newest {
    pub(crate) fn new(live: &ArcSwap<Live>) -> Self {
        Self(RefCell::new(Rc::new(View::new(live.load_full()))))
    }

    /// The configuration in force.
    pub(crate) fn get(&self, live: &ArcSwap<Live>) -> Rc<View> {
        let in_force = live.load();
        let mut newest = self.0.borrow_mut();
        if !Arc::ptr_eq(&newest.live, &in_force) {
            *newest = Rc::new(View::new(Arc::clone(&in_force)));
        }
        Rc::clone(&newest)
    }
}
