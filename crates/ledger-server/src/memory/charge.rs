//! What is held of the memory for one client.

use ledger_store::budget::Permit;

/// Bytes that are held of a connection's part and of the node's share, until this is dropped.
#[derive(Debug)]
pub struct Charge {
    /// Of the connection and of all, what large ones may take: nothing, of a small one.
    pub(super) large: [Permit; 2],
    /// Of the connection and of all.
    pub(super) all: [Permit; 2],
}

impl Charge {
    /// How many bytes are held.
    pub const fn amount(&self) -> usize {
        self.all[1].amount()
    }

    /// Also holds what another charge held.
    pub fn merge(&mut self, other: Self) {
        let both = |held: &mut [Permit; 2], others: [Permit; 2]| {
            held.iter_mut().zip(others).for_each(|(held, other)| held.merge(other));
        };
        both(&mut self.large, other.large);
        both(&mut self.all, other.all);
    }

    /// Holds so many bytes from now on.
    pub fn resize(&mut self, amount: usize) {
        self.large.iter_mut().filter(|large| large.amount() > 0).for_each(|large| large.resize(amount));
        self.all.iter_mut().for_each(|all| all.resize(amount));
    }

    /// Takes a part off; `None` if it holds less.
    pub fn split(&mut self, amount: usize) -> Option<Self> {
        if self.all.iter().any(|all| amount > all.amount()) {
            return None;
        }
        let large = |large: &mut Permit| large.split(amount.min(large.amount()));
        let [one, other] = &mut self.large;
        let large = [large(one)?, large(other)?];
        let [one, other] = &mut self.all;
        Some(Self { large, all: [one.split(amount)?, other.split(amount)?] })
    }
}
