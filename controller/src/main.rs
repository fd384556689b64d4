//! `ferrovia-controller`: the program around the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    controller::commands::main()
}
