//! Where a type's methods stand: a method call needs no import, so nothing else shows which file a type is made of.

use super::floors::House;
use super::modules::{Crate, Target};

/// Complains of inherent methods, and of a `Drop`, that stand outside the file of their type; of another trait's methods that
/// stand neither with the type nor with the trait.
pub(crate) fn check_impls(house: &House, krate: &Crate) -> Vec<String> {
    let mut bad = Vec::new();
    for (at, module) in krate.modules.iter().enumerate() {
        for block in &module.impls {
            let Some(Target::Item { file, name }) = krate.resolve(at, &block.of.path) else { continue };
            if file == module.file || house.stands_elsewhere(&name, &module.file) {
                continue;
            }
            let what = match &block.what {
                None => "`impl".to_owned(),
                Some(named) => {
                    let of = krate.resolve(at, &named.path);
                    if matches!(of, Some(Target::Item { file, .. }) if file == module.file) {
                        continue;
                    }
                    format!("`impl {} for", named.path.last().map_or("", String::as_str))
                }
            };
            bad.push(format!("{}:{}: {what} {name}` belongs to {file}", module.file, block.of.line));
        }
    }
    bad
}

mod can_fail {
    use super::super::modules::made_up;
    use super::*;

    const HOUSE: House = House { root: "src/lib.rs", elsewhere: &[("T", "allowed.rs")], ..House::NONE };

    fn there(name: &str, text: &str) -> Vec<String> {
        let root = format!("pub mod types; mod {name}; pub use types::T;");
        let file = format!("src/{name}.rs");
        let types =
            "pub struct T; pub trait Tr {} impl T {} impl Tr for T {} impl Drop for T { fn drop(&mut self) {} }";
        check_impls(&HOUSE, &made_up(&[("src/lib.rs", &root), ("src/types.rs", types), (&file, text)]))
    }

    #[test]
    fn methods_that_stand_elsewhere_are_named_with_their_line() {
        let refused = |text: &str, what: &str| {
            assert_eq!(there("verb", text), [format!("src/verb.rs:2: `{what} T` belongs to src/types.rs")], "{text}");
        };
        refused("\nimpl crate::types::T {}", "impl");
        refused("use crate::T;\nimpl T { fn f(&self) {} }", "impl");
        refused("use super::types::T as T;\nimpl<'a> T {}", "impl");
        refused("mod inner {\nimpl crate::T {} }", "impl");
        refused("use crate::T;\nimpl Drop for T { fn drop(&mut self) {} }", "impl Drop for");
        refused("use crate::{T, types::Tr};\nimpl Tr for T {}", "impl Tr for");
    }

    #[test]
    fn ones_own_traits_and_what_is_listed_may_stand() {
        assert_eq!(there("verb", "use crate::T; trait Mine {} impl Mine for T {}"), [""; 0]);
        assert_eq!(there("verb", "struct T; impl T {} impl From<T> for u32 {}"), [""; 0]);
        assert_eq!(there("verb", "#[cfg(test)] impl crate::T {}"), [""; 0]);
        assert_eq!(there("allowed", "use crate::T; impl Drop for T { fn drop(&mut self) {} }"), [""; 0]);
    }
}
