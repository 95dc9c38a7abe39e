//! Ports for nodes.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::ensure;

/// Where ports are looked for: below those that systems give to outgoing connections, one of which could have a
/// node's port when it is started again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Ports that nobody uses at the moment, neither TCP nor UDP.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..10_000 {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(PORTS);
        let address = (Ipv4Addr::LOCALHOST, port);
        if let (Ok(tcp), Ok(udp)) = (TcpListener::bind(address), UdpSocket::bind(address)) {
            // Held until all are found, so that each is another one.
            held.push((port, tcp, udp));
        }
    }
    ensure!(held.len() == count, "no {count} ports are free");
    Ok(held.into_iter().map(|(port, ..)| port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
