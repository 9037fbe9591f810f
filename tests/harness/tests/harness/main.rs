//! What the other tests stand on: the harness itself, and what `deploy/` ships.

mod chart;
mod control_plane;
mod deploy;
mod installation;
mod lending;
mod mirror;
mod playground;
mod world;
