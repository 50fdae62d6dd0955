//! Where may it be called? Each public function says so (`# Context`), or, in crates that are read file by file, its file.

use super::floors::{Contexts, House};
use super::modules::Crate;

/// Complains of each public function that says no context, unless its file may speak for it, and does.
pub(crate) fn check_contexts(house: &House, krate: &Crate) -> Vec<String> {
    let (speaks, who): (&dyn Fn(&str) -> bool, _) = match house.contexts {
        Contexts::Unsaid => return Vec::new(),
        Contexts::Function => (&|_| false, "`{}` does not say its `# Context`"),
        Contexts::File => (
            &|file| krate.modules.iter().any(|m| m.file == file && m.says_context),
            "neither `{}` nor its file says its `# Context`",
        ),
    };
    let silent = krate.modules.iter().filter(|m| !speaks(&m.file));
    silent
        .flat_map(|m| m.functions.iter().map(move |f| (m, f)))
        .filter(|(_, f)| f.is_public && !f.says_context)
        .map(|(m, f)| format!("{}:{}: {}", m.file, f.lines.1, who.replace("{}", &f.name)))
        .collect()
}

mod can_fail {
    use super::super::modules::made_up;
    use super::*;

    fn check(contexts: Contexts, text: &str) -> Vec<String> {
        let house = House { root: "lib.rs", contexts, ..House::NONE };
        check_contexts(&house, &made_up(&[("lib.rs", text)]))
    }

    const SAID: &str = "/// Does.\n///\n/// # Context: control plane\npub fn f() {}\nfn g() {}";
    const FILE: &str = "//! # Context: handler\npub fn f() {}\nmod inner { pub fn g() {} }";

    #[test]
    fn a_function_without_a_context_is_named() {
        let bad = |line: usize, name: &str| {
            vec![format!("lib.rs:{line}: neither `{name}` nor its file says its `# Context`")]
        };
        let check = |text| check(Contexts::File, text);
        assert_eq!(check("pub fn f() {}"), bad(1, "f"));
        assert_eq!(check("struct T;\nimpl T {\n    pub fn g(&self) {}\n}"), bad(3, "g"));
        assert_eq!(check("mod inner {\n pub unsafe fn h() {}\n}"), bad(2, "h"));
        assert_eq!(check("pub trait T {\n    fn k(&self);\n}"), bad(2, "k"));
        assert_eq!(check("trait T {\n    fn k(&self);\n}"), [""; 0]);
        assert_eq!(check(FILE), [""; 0]);
        assert_eq!(check(SAID), [""; 0]);
    }

    #[test]
    fn a_file_speaks_for_nobody_where_each_function_speaks_for_itself() {
        let bad = |line: usize, name: &str| format!("lib.rs:{line}: `{name}` does not say its `# Context`");
        assert_eq!(check(Contexts::Function, FILE), [bad(2, "f"), bad(3, "g")]);
        assert_eq!(check(Contexts::Function, SAID), [""; 0]);
    }
}
