//! Where may it be called? A file whose documentation says so (`# Context`) speaks for its functions; what differs says so itself.

use super::floors::House;
use super::modules::Crate;

/// Complains of each public function that says no context, in a file that says none.
pub(crate) fn check_contexts(house: &House, krate: &Crate) -> Vec<String> {
    if !house.contexts {
        return Vec::new();
    }
    let speaks = |file: &str| krate.modules.iter().any(|m| m.file == file && m.says_context);
    let silent = krate.modules.iter().filter(|m| !speaks(&m.file));
    let bad =
        |file: &str, line, name: &str| format!("{file}:{line}: neither `{name}` nor its file says its `# Context`");
    silent
        .flat_map(|m| m.functions.iter().map(move |f| (m, f)))
        .filter(|(_, f)| f.is_public && !f.says_context)
        .map(|(m, f)| bad(&m.file, f.lines.1, &f.name))
        .collect()
}

mod can_fail {
    use super::super::modules::made_up;
    use super::*;

    #[test]
    fn a_function_without_a_context_is_named() {
        let house = House { root: "lib.rs", contexts: true, ..House::NONE };
        let check = |text: &str| check_contexts(&house, &made_up(&[("lib.rs", text)]));
        let bad = |line: usize, name: &str| {
            vec![format!("lib.rs:{line}: neither `{name}` nor its file says its `# Context`")]
        };
        assert_eq!(check("pub fn f() {}"), bad(1, "f"));
        assert_eq!(check("struct T;\nimpl T {\n    pub fn g(&self) {}\n}"), bad(3, "g"));
        assert_eq!(check("mod inner {\n pub unsafe fn h() {}\n}"), bad(2, "h"));
        assert_eq!(check("//! # Context: handler\npub fn f() {}\nmod inner { pub fn g() {} }"), [""; 0]);
        assert_eq!(check("/// Does.\n///\n/// # Context: control plane\npub fn f() {}\nfn g() {}"), [""; 0]);
    }
}
