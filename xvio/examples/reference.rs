//! The reference device of the tests as a program: sends every packet of a guest back to it, like
//! `reflect`, but on the general crates for virtio devices. For comparing the two.
//!
//! ```text
//! cargo run -p xvio --example reference -- /tmp/reference.sock [queue pairs]
//! ```

#[path = "../tests/reference/mod.rs"]
mod reference;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments
        .next()
        .ok_or("usage: reference SOCKET [QUEUE PAIRS]")?;
    let pairs = arguments.next().map_or(Ok(1), |n| n.parse())?;
    reference::serve(socket.as_ref(), pairs)
}
