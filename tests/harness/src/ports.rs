//! Ports for programs that cannot choose one themselves.

/// `N` different ports of 127.0.0.1 that are free now, below the range that outgoing connections are given. Somebody
/// else may still take one before it is used.
///
/// # Errors
/// When there are not as many.
pub fn free<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut held = Vec::new();
    for _ in 0..1000 {
        if held.len() == N {
            break;
        }
        if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", rand::random_range(20_000..32_000))) {
            held.push(listener);
        }
    }
    let ports: Vec<u16> =
        held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<std::io::Result<_>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("no free ports on 127.0.0.1 between 20000 and 32000"))
}
