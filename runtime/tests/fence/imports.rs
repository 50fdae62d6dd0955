//! Arrows between files: none leads to a higher floor, and none closes a circle.

use super::floors::House;
use super::modules::{Arrow, Crate};
use std::collections::{BTreeMap, BTreeSet};

/// Complains of every arrow that leads up, and of every file without a floor.
pub(crate) fn check_floors(house: &House, krate: &Crate) -> Vec<String> {
    let mut bad = Vec::new();
    for file in krate.files() {
        if house.floor(file).is_none() {
            bad.push(format!("{file}:1: is on no floor of `{}` in fence/floors.rs", house.root));
        }
    }
    for arrow in krate.arrows() {
        let (Some(from), Some(to)) = (house.floor(&arrow.from), house.floor(&arrow.to)) else { continue };
        if to > from {
            bad.push(format!("{}:{}: imports from {}, which is on a higher floor", arrow.from, arrow.line, arrow.to));
        }
    }
    bad
}

/// Complains of circles: for each file that is on one, of one circle that it closes.
pub(crate) fn check_circles(house: &House, krate: &Crate) -> Vec<String> {
    let mut next: BTreeMap<String, Vec<Arrow>> = BTreeMap::new();
    for arrow in krate.arrows().into_iter().filter(|a| !house.is_knot(a)) {
        next.entry(arrow.from.clone()).or_default().push(arrow);
    }
    let mut bad = Vec::new();
    let mut told: BTreeSet<String> = BTreeSet::new();
    for file in next.keys() {
        if told.contains(file) {
            continue;
        }
        if let Some(circle) = circle_through(file, &next) {
            told.extend(circle.iter().map(|a| a.from.clone()));
            let way: Vec<_> = circle.iter().map(|a| format!("{}:{}", a.from, a.line)).collect();
            bad.push(format!("{}: a circle of imports: {} -> {file}", way[0], way.join(" -> ")));
        }
    }
    bad
}

/// Returns a shortest way from `file` back to it.
fn circle_through(file: &str, next: &BTreeMap<String, Vec<Arrow>>) -> Option<Vec<Arrow>> {
    let mut came: BTreeMap<&str, &Arrow> = BTreeMap::new();
    let mut queue = std::collections::VecDeque::from([file]);
    while let Some(at) = queue.pop_front() {
        for arrow in next.get(at).map_or(&[][..], |a| a) {
            if arrow.to == file {
                let mut way = vec![arrow.clone()];
                while way[0].from != file {
                    way.insert(0, came[way[0].from.as_str()].clone());
                }
                return Some(way);
            }
            if !came.contains_key(arrow.to.as_str()) {
                came.insert(&arrow.to, arrow);
                queue.push_back(&arrow.to);
            }
        }
    }
    None
}

mod can_fail {
    use super::super::modules::made_up;
    use super::*;

    const HOUSE: House =
        House { root: "src/lib.rs", floors: &[&["low"], &["high"]], knots: &[("low/x.rs", "low/y.rs")], ..House::NONE };

    fn low(text: &str) -> Crate {
        made_up(&[
            ("src/lib.rs", "mod low; mod high; pub use high::H;"),
            ("src/low.rs", text),
            ("src/high.rs", "mod deep; pub struct H; fn f() { crate::low::l(); }"),
            ("src/high/deep.rs", "pub struct D;"),
            ("src/low/nested.rs", "use super::super::high::H;"),
        ])
    }

    fn refused(text: &str, complaint: &str) {
        assert_eq!(check_floors(&HOUSE, &low(text)), [complaint], "{text}");
    }

    #[test]
    fn an_import_that_leads_up_is_named_with_its_line() {
        assert_eq!(check_floors(&HOUSE, &low("pub fn l() {}")), [""; 0]);
        let up = "imports from src/high.rs, which is on a higher floor";
        refused("\nuse crate::high::H;", &format!("src/low.rs:2: {up}"));
        refused("\nuse crate::H;", &format!("src/low.rs:2: {up}"));
        refused("\n\nfn f() -> super::high::H { super::high::H }", &format!("src/low.rs:3: {up}"));
        refused("mod inner { use super::super::high::H; }", &format!("src/low.rs:1: {up}"));
        refused("mod nested;", &format!("src/low/nested.rs:1: {up}"));
    }

    #[test]
    fn a_file_without_a_floor_is_named() {
        let house = House { floors: &[&["low"]], ..HOUSE };
        let bad = check_floors(&house, &low(""));
        assert_eq!(bad[0], "src/high.rs:1: is on no floor of `src/lib.rs` in fence/floors.rs");
    }

    #[test]
    fn a_circle_is_named_with_its_way() {
        let krate = low("pub fn l() { super::high::f(); }");
        let way = "src/high.rs:1 -> src/low.rs:1 -> src/high.rs";
        assert_eq!(check_circles(&HOUSE, &krate), [format!("src/high.rs:1: a circle of imports: {way}")]);
        assert_eq!(check_circles(&HOUSE, &low("pub fn l() {}")), [""; 0]);
        let parent =
            made_up(&[("src/lib.rs", "mod low; fn f() { low::g() }"), ("src/low.rs", "pub fn g() { crate::f() }")]);
        assert_eq!(check_circles(&HOUSE, &parent).len(), 1, "a child and its parent");
    }

    #[test]
    fn a_circle_by_a_name_that_is_passed_on_is_seen() {
        let files = |x: &'static str| {
            made_up(&[
                ("src/lib.rs", "mod low;"),
                ("src/low.rs", "mod x; mod y; pub use y::Y; fn f() { x::g() }"),
                ("src/low/x.rs", x),
                ("src/low/y.rs", "pub struct Y;"),
            ])
        };
        let way = "src/low.rs:1 -> src/low/x.rs:1 -> src/low.rs";
        let house = House { knots: &[], ..HOUSE };
        let circles = check_circles(&house, &files("use super::Y; pub fn g() {}"));
        assert_eq!(circles, [format!("src/low.rs:1: a circle of imports: {way}")]);
        assert_eq!(check_circles(&house, &files("use super::y::Y; pub fn g() {}")), [""; 0]);
    }

    #[test]
    fn a_knot_that_is_listed_is_let_be() {
        let krate = made_up(&[
            ("src/lib.rs", "mod low;"),
            ("src/low/mod.rs", "mod x; mod y;"),
            ("src/low/x.rs", "use super::y::Y; pub struct X;"),
            ("src/low/y.rs", "use super::x::X; pub struct Y;"),
        ]);
        assert_eq!(check_circles(&HOUSE, &krate), [""; 0]);
        assert_eq!(check_circles(&House { knots: &[], ..HOUSE }, &krate).len(), 1);
    }
}
