//! Steps that take themselves back: what an operation of the control plane undoes is what it did, and nothing else.
//!
//! Each step hands out a [`Done`] when it has been done, and not before. An operation that fails half-way returns, and
//! the steps it got to are dropped in reverse; one that succeeds keeps them all, at its end. So there is no list of undos
//! beside the list of steps, which could name a step that was never reached.
//!
//! # Context: as the step that is undone

/// A step that was done. Dropped, it is taken back.
#[must_use = "a step that is dropped is taken back"]
pub(crate) struct Done<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Done<F> {
    /// Of a step that has just been done; `undo` takes it back.
    pub(crate) fn new(undo: F) -> Self {
        Self(Some(undo))
    }

    /// The operation has succeeded: the step stays.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Done<F> {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Done;
    use std::cell::RefCell;

    #[test]
    fn what_was_done_is_undone_in_reverse() {
        let log = &RefCell::new(Vec::new());
        let step = |name| Done::new(move || log.borrow_mut().push(name));
        let operation = |fails: bool| -> Option<()> {
            let (a, b) = (step("a"), step("b"));
            if fails {
                return None;
            }
            let c = step("c");
            [a, b, c].into_iter().for_each(Done::keep);
            Some(())
        };
        assert_eq!(operation(false), Some(()));
        assert!(log.borrow().is_empty());
        assert_eq!(operation(true), None);
        assert_eq!(*log.borrow(), ["b", "a"], "the step that was not reached is not undone");
    }
}
