//! Tokens for work that goes on outside a section: who holds one keeps its object alive.
//!
//! A token is made only by this crate, together with an increment of the object's `users`; it is spent only by this
//! crate, together with the decrement. Dropping one without spending it would keep the object for ever, so tokens are
//! `must_use` and not `Clone`.
//!
//! # Context: handler, and the fillers

/// In `nr`: the claim reads ahead. Claims are of far fewer pages.
const AHEAD: u32 = 1 << 31;
/// In `nr`: the claim is to write pages that stay where they are.
const STAYING: u32 = 1 << 30;

/// The right to fill pages `pgoff..pgoff + nr` of an object (they are `filling`, owned by the holder), or, with
/// `nr == 0`, only to use the object at `pgoff`.
#[must_use = "a claim must be completed, passed on or released"]
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    mapping: u32,
    nr: u32,
    pgoff: u64,
}

impl Claim {
    pub(crate) fn new(mapping: u32, pgoff: u64, nr: u32) -> Self {
        Self { mapping, nr, pgoff }
    }
    /// Returns the object's number.
    ///
    /// # Context: handler
    #[must_use]
    pub fn mapping_id(&self) -> u32 {
        self.mapping
    }
    /// Returns a key to the same object, for looking it up while this token is spent. Dropping it changes nothing.
    ///
    /// # Context: handler
    pub fn again(&self) -> Self {
        Self::from_words([u64::from(self.mapping) << 32, self.pgoff])
    }
    /// Returns the first page.
    ///
    /// # Context: handler
    #[must_use]
    pub fn pgoff(&self) -> u64 {
        self.pgoff
    }
    /// Returns the number of pages.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr(&self) -> u32 {
        self.nr & !(AHEAD | STAYING)
    }
    /// Returns whether nobody asked for the pages yet: what the store cannot give stays absent then.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.nr & AHEAD != 0
    }
    /// Makes it a claim for pages that nobody asked for.
    ///
    /// # Context: handler
    pub fn into_ahead(self) -> Self {
        Self { nr: self.nr | AHEAD, ..self }
    }
    /// Returns whether what is written stays in memory, also of an exclusive object, whose pages go where reclaim has them written.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_staying(&self) -> bool {
        self.nr & STAYING != 0
    }
    /// Makes it a claim to write pages that stay where they are.
    ///
    /// # Context: handler
    pub fn into_staying(self) -> Self {
        Self { nr: self.nr | STAYING, ..self }
    }
    /// Turns the token into two words, for a queue.
    ///
    /// # Context: handler
    #[must_use]
    pub fn into_words(self) -> [u64; 2] {
        self.words()
    }
    pub(crate) fn words(&self) -> [u64; 2] {
        [(u64::from(self.mapping) << 32) | u64::from(self.nr), self.pgoff]
    }
    /// Turns two words back into the token they were, for the queue's other end.
    ///
    /// Each pair may be turned back once: a token stands for an increment of the object's `users`, and a forged one
    /// would end a life that it did not begin.
    ///
    /// # Context: handler
    #[doc(hidden)]
    pub fn from_words(words: [u64; 2]) -> Self {
        let [ids, pgoff] = words;
        let half = |w: u64| u32::try_from(w & 0xffff_ffff).unwrap_or(0);
        Self { mapping: half(ids >> 32), nr: half(ids), pgoff }
    }
}

/// The duty to tell a delegate of the first touch of one page.
#[must_use = "a telling must be told or given up"]
#[derive(Debug, PartialEq, Eq)]
pub struct Telling {
    delegation: u32,
    /// Page index in the delegated range.
    index: u32,
    address: usize,
    write: bool,
    claim: Claim,
}

impl Telling {
    #[cfg_attr(
        not(any(feature = "userfaultfd", test)),
        expect(dead_code, reason = "nobody is told without userfaultfd")
    )]
    pub(crate) fn new(delegation: u32, index: u32, address: usize, write: bool, claim: Claim) -> Self {
        Self { delegation, index, address, write, claim }
    }
    /// Returns the delegation's number.
    ///
    /// # Context: handler
    #[must_use]
    pub fn delegation_id(&self) -> u32 {
        self.delegation
    }
    /// Returns the page's index in the delegated range.
    ///
    /// # Context: handler
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
    /// Returns the touched address, page-aligned.
    ///
    /// # Context: handler
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }
    /// Returns whether the touch is a store.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.write
    }
    /// Returns the claim that keeps the object alive.
    ///
    /// # Context: handler
    #[must_use = "it stays in the telling"]
    pub fn claim(&self) -> &Claim {
        &self.claim
    }
    /// Returns a key to the same delegation, for looking it up while this token is spent. Dropping it changes nothing.
    #[cfg(feature = "userfaultfd")]
    pub(crate) fn again(&self) -> Self {
        Self { claim: self.claim.again(), ..*self }
    }
    /// Gives the claim back, to be released.
    ///
    /// # Context: handler
    pub fn into_claim(self) -> Claim {
        self.claim
    }
    /// Turns the token into four words, for a queue.
    ///
    /// # Context: handler
    #[must_use]
    pub fn into_words(self) -> [u64; 4] {
        let ids = (u64::from(self.delegation) << 32) | u64::from(self.index);
        let [a, b] = self.claim.into_words();
        [ids, self.address as u64 | u64::from(self.write), a, b]
    }
    /// Turns four words back into the token they were, once; see [`Claim::from_words`].
    ///
    /// # Context: handler
    #[doc(hidden)]
    pub fn from_words(words: [u64; 4]) -> Self {
        let [ids, address, a, b] = words;
        let half = |w: u64| u32::try_from(w & 0xffff_ffff).unwrap_or(0);
        Self {
            delegation: half(ids >> 32),
            index: half(ids),
            address: usize::try_from(address & !1).unwrap_or(0),
            write: address & 1 != 0,
            claim: Claim::from_words([a, b]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_queue() {
        let words = Claim::new(7, u64::MAX, u32::MAX).into_words();
        assert_eq!(Claim::from_words(words), Claim::new(7, u64::MAX, u32::MAX));
        let ahead = Claim::from_words(Claim::new(7, 3, 5).into_ahead().into_words());
        assert!(ahead.is_ahead() && !ahead.is_staying() && ahead.nr() == 5, "{ahead:?}");
        let staying = Claim::from_words(Claim::new(7, 3, 5).into_staying().into_words());
        assert!(staying.is_staying() && !staying.is_ahead() && staying.nr() == 5, "{staying:?}");
        let t = || Telling::new(3, 9, 0x7fff_ffff_f000, true, Claim::new(1, 2, 0));
        assert_eq!(Telling::from_words(t().into_words()), t());
    }
}
