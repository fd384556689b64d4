//! `ferrovia-lab`: runs test suites on a lab's NICs, emulated and real. See `docs/lab.md`.

fn main() -> std::process::ExitCode {
    hw_tests::lab::command_line::main()
}
