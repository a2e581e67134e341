//! One run of a target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::settings::Settings;
use crate::smaller::smaller;
use crate::watch::Watch;

/// Gives inputs that `make` makes to `check`, which panics at what must not be.
///
/// # Panics
/// As soon as `check` does, with the place where the input has been written.
pub fn fuzz(target: &str, make: impl Fn(&mut Rng) -> Vec<u8>, check: impl FnMut(&[u8])) {
    run(target, &Settings::of_environment(), make, check);
}

fn run(target: &str, settings: &Settings, make: impl Fn(&mut Rng) -> Vec<u8>, mut check: impl FnMut(&[u8])) {
    let watch = Watch::with(target, settings);
    if let Some(file) = &settings.only {
        let input = std::fs::read(file).unwrap_or_default();
        return watch.over(&input, || check(&input));
    }
    println!("fuzz {target}: seed {}", settings.seed);
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    for number in 0..settings.inputs {
        let input = make(&mut generator(settings.seed, number));
        let before = Instant::now();
        if !watch.over(&input, || passes(&mut check, &input)) {
            // The reader is watched over again for each.
            let small = smaller(&input, |part| !watch.over(part, || silently(|| passes(&mut check, part))));
            fail(target, settings, number, &input, &small);
        }
        slowest = slowest.max(before.elapsed());
    }
    let (inputs, seconds) = (settings.inputs, begun.elapsed().as_secs_f64());
    println!("fuzz {target}: {inputs} inputs in {seconds:.1} s, the slowest in {} ms", slowest.as_millis());
}

/// The generator of an input. The numbers of inputs differ in few bits, their generators must not.
fn generator(seed: u64, number: u64) -> Rng {
    let mut first = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    first.fork()
}

fn passes(check: &mut impl FnMut(&[u8]), input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(input))).is_ok()
}

/// Does something without telling of its panics.
fn silently<T>(what: impl FnOnce() -> T) -> T {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = what();
    std::panic::set_hook(before);
    result
}

#[expect(clippy::panic, reason = "it fails the test that it is called by")]
fn fail(target: &str, settings: &Settings, number: u64, input: &[u8], small: &[u8]) -> ! {
    let seed = settings.seed;
    let name = |what: &str| settings.files.join(format!("{target}-{seed}-{number}{what}"));
    let whole = write(&name(""), input);
    let small = write(&name("-small"), small);
    panic!("fuzz {target}: seed {seed}, input {number} fails: {whole}; minimized: {small}");
}

/// Writes an input to a file; tells where, or why not.
pub(crate) fn write(file: &Path, input: &[u8]) -> String {
    if let Some(directory) = file.parent() {
        // What is wrong with it shows with the file.
        drop(std::fs::create_dir_all(directory));
    }
    match std::fs::write(file, input) {
        Ok(()) => format!("it is in {}", file.display()),
        Err(error) => format!("{}: {error}; it is {input:02x?}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn settings(name: &str) -> Settings {
        let files = std::env::temp_dir().join(format!("sluice-fuzz-{}-{name}", std::process::id()));
        Settings { inputs: 200, seed: 7, limit: Duration::from_secs(60), only: None, files }
    }

    fn number(rng: &mut Rng) -> Vec<u8> {
        vec![rng.u8(..), rng.u8(..), rng.u8(..)]
    }

    #[test]
    fn all_inputs_are_given_and_differ() {
        let seen = RefCell::new(Vec::new());
        let settings = settings("all");
        run("all", &settings, number, |input| seen.borrow_mut().push(input.to_vec()));
        let _ = std::fs::remove_dir(&settings.files);
        let mut seen = seen.into_inner();
        assert_eq!(seen.len(), 200);
        seen.dedup();
        assert!(seen.len() > 190);
    }

    #[test]
    fn a_panic_fails_and_leaves_the_input_whole_and_small() {
        let settings = settings("panics");
        let check = |input: &[u8]| assert!(!input.iter().any(|byte| *byte > 200), "a big one");
        let failed = catch_unwind(AssertUnwindSafe(|| run("panics", &settings, number, check)));
        let message = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("seed 7, input "), "{message}");
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&settings.files).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let lengths: Vec<usize> = files.iter().map(|file| std::fs::read(file).unwrap().len()).collect();
        assert_eq!(lengths, [3, 1], "{files:?}");
        let again = Settings { only: Some(files[1].clone()), ..settings.clone() };
        assert!(catch_unwind(AssertUnwindSafe(|| run("panics", &again, number, check))).is_err());
        std::fs::remove_dir_all(&settings.files).unwrap();
    }

    /// Makes the test below, in a process of its own, never end.
    const CHILD: &str = "SLUICE_FUZZ_TEST_HANGS";

    #[test]
    fn a_reader_that_hangs() {
        if let Some(files) = std::env::var_os(CHILD) {
            let limit = Duration::from_millis(300);
            let settings = Settings { files: files.into(), limit, ..settings("") };
            let hang = |input: &[u8]| {
                while input.first().is_some_and(|byte| *byte > 100) {
                    std::hint::spin_loop();
                }
            };
            run("hangs", &settings, number, hang);
        }
    }

    #[test]
    fn a_hang_ends_the_process_and_leaves_the_input() {
        let settings = settings("hangs");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "run::tests::a_reader_that_hangs"]).env(CHILD, &settings.files);
        assert!(!child.output().unwrap().status.success());
        assert!(std::fs::read(settings.files.join("hangs-hangs")).unwrap()[0] > 100);
        std::fs::remove_dir_all(&settings.files).unwrap();
    }
}
