//! Limits how much memory, or another counted resource, its users hold at the same time.
//!
//! A user acquires a permit before it allocates, and waits in turn while too little is free. Dropping the permit
//! returns its amount. A user that cannot wait charges its amount at once, over the capacity if necessary; then all
//! others wait until the debt is paid back.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

/// A limited amount of memory, or of anything else that is counted.
#[derive(Debug)]
pub struct Share {
    name: &'static str,
    capacity: usize,
    free: Semaphore,
    /// The amount charged beyond the capacity.
    overdrawn: AtomicUsize,
}

/// A part of a share, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    share: Arc<Share>,
    amount: usize,
}

impl Share {
    /// The largest capacity.
    pub const MAX: usize = u32::MAX as usize;

    /// Creates a share of `capacity`, at most [`Share::MAX`].
    pub fn new(name: &'static str, capacity: usize) -> Arc<Self> {
        let capacity = capacity.min(Self::MAX);
        let free = Semaphore::new(capacity);
        Arc::new(Self { name, capacity, free, overdrawn: AtomicUsize::new(0) })
    }

    /// Returns the name that messages and metrics use.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the whole capacity.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns how much is held.
    pub fn used(&self) -> usize {
        let free = self.free.available_permits();
        self.capacity.saturating_sub(free) + self.overdrawn.load(Ordering::Relaxed)
    }

    /// Waits in turn for `amount`, or for the whole capacity if `amount` is larger. Cancellation-safe.
    pub async fn acquire(self: &Arc<Self>, amount: usize) -> Permit {
        let amount = amount.min(self.capacity);
        // Nothing closes the semaphore, so this cannot fail.
        if let Ok(permits) = self.free.acquire_many(count(amount)).await {
            permits.forget();
        }
        Permit { share: Arc::clone(self), amount }
    }

    /// Takes `amount` if nobody has to wait for it.
    pub fn try_acquire(self: &Arc<Self>, amount: usize) -> Option<Permit> {
        let amount = amount.min(self.capacity);
        self.free.try_acquire_many(count(amount)).ok()?.forget();
        Some(Permit { share: Arc::clone(self), amount })
    }

    /// Takes `amount` at once, beyond the capacity if necessary: other users wait until that is paid back.
    pub fn charge(self: &Arc<Self>, amount: usize) -> Permit {
        self.take(amount);
        Permit { share: Arc::clone(self), amount }
    }

    fn take(&self, amount: usize) {
        let mut left = amount;
        loop {
            let free = self.free.available_permits().min(left);
            if free == 0 {
                break;
            }
            if let Ok(permits) = self.free.try_acquire_many(count(free)) {
                permits.forget();
                left -= free;
            }
        }
        self.overdrawn.fetch_add(left, Ordering::Relaxed);
    }

    fn release(&self, amount: usize) {
        let mut paid = 0;
        let pay = |overdrawn: usize| {
            paid = overdrawn.min(amount);
            Some(overdrawn - paid)
        };
        // The closure always returns a value, so this cannot fail.
        let _ = self.overdrawn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        self.free.add_permits(amount - paid);
    }
}

/// Converts an amount for the semaphore: no capacity is larger.
fn count(amount: usize) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

impl Permit {
    /// Returns how much the permit holds.
    pub const fn amount(&self) -> usize {
        self.amount
    }

    /// Splits `amount` off into a new permit; `None` if the permit holds less.
    pub fn split(&mut self, amount: usize) -> Option<Self> {
        self.amount = self.amount.checked_sub(amount)?;
        Some(Self { share: Arc::clone(&self.share), amount })
    }

    /// Adds what another permit of the same share holds.
    pub fn merge(&mut self, mut other: Self) {
        if Arc::ptr_eq(&self.share, &other.share) {
            self.amount += std::mem::take(&mut other.amount);
        }
    }

    /// Changes the amount held: returns the surplus, or charges the difference at once.
    pub fn resize(&mut self, amount: usize) {
        if amount < self.amount {
            self.share.release(self.amount - amount);
        } else {
            self.share.take(amount - self.amount);
        }
        self.amount = amount;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.share.release(self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_share_gives_out_no_more_than_it_has_and_all_of_it_comes_back() {
        let share = Share::new("test", 100);
        let mut first = share.try_acquire(60).unwrap();
        assert!(share.try_acquire(41).is_none());
        let part = first.split(20).unwrap();
        assert!(first.split(41).is_none());
        assert_eq!((first.amount(), part.amount(), share.used()), (40, 20, 60));
        drop(first);
        assert_eq!(share.used(), 20);
        let mut rest = share.try_acquire(80).unwrap();
        rest.merge(part);
        rest.resize(10);
        assert_eq!(share.used(), 10);
        drop(rest);
        assert_eq!(share.used(), 0);
    }

    #[test]
    fn who_asks_for_more_than_there_is_waits_for_all_of_it() {
        let share = Share::new("test", 100);
        let one = share.try_acquire(1).unwrap();
        let mut all = Box::pin(share.acquire(1000));
        assert!(all.as_mut().now_or_never().is_none());
        drop(one);
        assert_eq!(all.now_or_never().unwrap().amount(), 100);
    }

    #[test]
    fn what_is_charged_over_the_capacity_is_paid_back_before_anybody_else_is_served() {
        let share = Share::new("test", 100);
        let charged = share.charge(150);
        assert_eq!(share.used(), 150);
        let more = share.charge(10);
        drop(charged);
        assert_eq!(share.used(), 10);
        assert!(share.try_acquire(91).is_none());
        assert!(share.try_acquire(90).is_some());
        drop(more);
        assert_eq!(share.used(), 0);
    }
}
