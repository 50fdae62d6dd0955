//! A step is a function that is read at once.

use super::floors::House;
use super::modules::Crate;

/// Lines of a function, from `fn` to its closing brace.
pub(crate) const MAX_LINES: usize = 60;

/// Complains of functions that are too long, and of longer ones that are listed and are not (any more).
pub(crate) fn check_functions(house: &House, krate: &Crate) -> Vec<String> {
    let Some(long) = house.long else { return Vec::new() };
    let mut bad = Vec::new();
    let mut used = Vec::new();
    for module in &krate.modules {
        for f in &module.functions {
            let nr = f.lines.2 + 1 - f.lines.1;
            let listed = long.iter().find(|(name, _)| *name == f.name).map(|(_, most)| *most);
            if nr <= MAX_LINES {
                continue;
            }
            used.push(f.name.as_str());
            let most = listed.unwrap_or(MAX_LINES);
            if nr > most {
                bad.push(format!("{}:{}: `{}` has {nr} lines, at most {most}", module.file, f.lines.1, f.name));
            }
        }
    }
    let stale = long.iter().filter(|(name, _)| !used.contains(name));
    bad.extend(stale.map(|(name, _)| format!("{}: `{name}` is listed as long, and is not (any more)", house.root)));
    bad
}

mod can_fail {
    use super::super::modules::made_up;
    use super::*;

    #[test]
    fn a_long_function_is_named_with_its_line() {
        let text = format!("\nfn long() {{\n{}}}\nfn short() {{}}", "    x();\n".repeat(MAX_LINES - 1));
        let check =
            |long| check_functions(&House { root: "lib.rs", long, ..House::NONE }, &made_up(&[("lib.rs", &text)]));
        assert_eq!(check(Some(&[])), ["lib.rs:2: `long` has 61 lines, at most 60"]);
        assert_eq!(check(Some(&[("long", 61)])), [""; 0]);
        assert_eq!(check(Some(&[("long", 61), ("short", 70)])).len(), 1, "listed in vain");
        assert_eq!(check(None), [""; 0]);
    }
}
