//! What the other tests stand on: the harness itself.

mod control_plane;
