//! A crate's modules as the compiler sees them: which file each lies in, what it defines, what it names, and where a path leads.
//!
//! A path leads to the file that *defines* what it names: a module that passes something on (`pub use`) is passed through,
//! so that the name at the root of a crate is an arrow to the floor where the thing is. Declaring a module (`mod x;`) is no
//! arrow; nor is passing on what lies below, as long as the file does not use it. What is compiled for tests alone is not read.
//!
//! Method calls are not seen (they need no import); that is why `impls` asks where a type's methods stand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Token, UseTree, Visibility};

/// Reads a file's text by its name in the workspace; `None`: there is no such file.
pub(crate) type Read<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Paths may lead through this many re-exports; more is a circle of them.
const MAX_HOPS: usize = 32;

/// A path as written, and the line that it is on.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// One name that a `use` brings in; without a name it brings in everything.
struct Use {
    named: Named,
    name: Option<String>,
    passes_on: bool,
}

/// An `impl` block.
pub(crate) struct Impl {
    pub(crate) of: Named,
    pub(crate) what: Option<Named>,
}

/// A function that is not only for tests.
pub(crate) struct Function {
    pub(crate) name: String,
    /// The type whose method it is.
    pub(crate) of: Option<String>,
    pub(crate) is_public: bool,
    /// Its documentation says where it may be called.
    pub(crate) says_context: bool,
    /// From the line of its documentation, of `fn`, and to its closing brace.
    pub(crate) lines: (usize, usize, usize),
}

/// A module that is not only for tests; several may lie in one file.
pub(crate) struct Module {
    pub(crate) file: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    items: BTreeSet<String>,
    uses: Vec<Use>,
    paths: Vec<Named>,
    pub(crate) impls: Vec<Impl>,
    pub(crate) functions: Vec<Function>,
    /// Its documentation says where its functions may be called.
    pub(crate) says_context: bool,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Module(usize),
    Item { file: String, name: String },
}

/// How a path leads there.
struct Way {
    end: Target,
    /// The modules that have the name from elsewhere.
    by: Vec<usize>,
}

impl Way {
    fn to(end: Target) -> Self {
        Self { end, by: Vec::new() }
    }
}

/// An arrow between two files of a crate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrow {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) line: usize,
}

/// The modules of one crate; the first is its root.
pub(crate) struct Crate {
    pub(crate) modules: Vec<Module>,
    /// Exported macros are at the root, wherever they stand.
    macros: BTreeMap<String, String>,
    /// Files of modules that are there for tests alone.
    pub(crate) tests: BTreeSet<String>,
    /// Files that could not be read, or not be understood.
    pub(crate) bad: Vec<String>,
}

impl Crate {
    /// Reads the crate whose root is the file `root`.
    pub(crate) fn read(root: &str, read: &Read<'_>) -> Self {
        let mut this = Self { modules: Vec::new(), macros: BTreeMap::new(), tests: BTreeSet::new(), bad: Vec::new() };
        this.read_file(root, &dir_of(root), None, read);
        this
    }

    /// Reads one file as a module, with everything below it. `dir`: where its children lie.
    fn read_file(&mut self, name: &str, dir: &str, parent: Option<usize>, read: &Read<'_>) -> Option<usize> {
        let Some(text) = read(name) else {
            self.bad.push(format!("{name}:1: there is no such file"));
            return None;
        };
        match syn::parse_file(&text) {
            Ok(file) => {
                let at = self.add(name, dir, parent, &file.items, read);
                self.modules[at].says_context = says_context(&file.attrs);
                Some(at)
            }
            Err(e) => {
                self.bad.push(format!("{name}:{}: {e}", e.span().start().line));
                None
            }
        }
    }

    fn add(&mut self, file: &str, dir: &str, parent: Option<usize>, items: &[Item], read: &Read<'_>) -> usize {
        let at = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            uses: Vec::new(),
            paths: Vec::new(),
            impls: Vec::new(),
            functions: Vec::new(),
            says_context: false,
        });
        for item in items {
            match item {
                Item::Mod(module) if is_for_tests(&module.attrs) => {
                    self.tests.insert(self.file_of(file, &format!("{dir}/{}", module.ident), module, read).0);
                }
                item if is_for_tests(attrs(item)) => {}
                Item::Mod(module) => {
                    let name = module.ident.to_string();
                    let dir = format!("{dir}/{name}");
                    let child = match &module.content {
                        Some((_, items)) => Some(self.add(file, &dir, Some(at), items, read)),
                        None => {
                            let (name, dir) = self.file_of(file, &dir, module, read);
                            self.read_file(&name, &dir, Some(at), read)
                        }
                    };
                    if let Some(child) = child {
                        self.modules[at].children.insert(name, child);
                    }
                }
                Item::Use(u) => self.modules[at].add_use(&u.tree, !matches!(u.vis, Visibility::Inherited)),
                item => {
                    self.modules[at].items.extend(name_of(item));
                    if let Item::Macro(m) = item
                        && m.attrs.iter().any(|a| a.path().is_ident("macro_export"))
                        && let Some(name) = &m.ident
                    {
                        self.macros.insert(name.to_string(), file.to_owned());
                    }
                    Names { module: &mut self.modules[at], of: None, of_public_trait: false }.visit_item(item);
                }
            }
        }
        at
    }

    /// Returns the file of `mod name;`, and the folder of its children.
    fn file_of(&self, file: &str, dir: &str, module: &syn::ItemMod, read: &Read<'_>) -> (String, String) {
        let path = module.attrs.iter().filter(|a| a.path().is_ident("path")).find_map(|a| match &a.meta {
            syn::Meta::NameValue(v) => match &v.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(s), .. }) => Some(s.value()),
                _ => None,
            },
            _ => None,
        });
        match path {
            Some(path) => {
                let name = normal(&Path::new(file).parent().unwrap_or_else(|| Path::new("")).join(path));
                let dir = dir_of(&name);
                (name, dir)
            }
            None if read(&format!("{dir}.rs")).is_some() => (format!("{dir}.rs"), dir.to_owned()),
            None => (format!("{dir}/mod.rs"), dir.to_owned()),
        }
    }

    /// Returns where `path`, as `from` says it, leads; `None`: out of the crate, or to a name that is local or built in.
    pub(crate) fn resolve(&self, from: usize, path: &[String]) -> Option<Target> {
        self.follow(from, path).map(|way| way.end)
    }

    /// As [`Crate::resolve`], with the modules on the way that pass the name on.
    fn follow(&self, from: usize, path: &[String]) -> Option<Way> {
        self.resolve_in(from, path, MAX_HOPS)
    }

    fn resolve_in(&self, from: usize, path: &[String], hops: usize) -> Option<Way> {
        let hops = hops.checked_sub(1)?;
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(0, rest, hops),
            "self" => self.walk(from, rest, hops),
            "super" => self.walk(self.modules[from].parent?, rest, hops),
            _ => self.look_up(from, first, rest, hops),
        }
    }

    /// Follows `path` from a module that it has reached.
    fn walk(&self, at: usize, path: &[String], hops: usize) -> Option<Way> {
        let Some((first, rest)) = path.split_first() else { return Some(Way::to(Target::Module(at))) };
        if first == "super" {
            return self.walk(self.modules[at].parent?, rest, hops);
        }
        if at == 0
            && let Some(file) = self.macros.get(first)
        {
            return Some(Way::to(Target::Item { file: file.clone(), name: first.clone() }));
        }
        self.look_up(at, first, rest, hops)
    }

    /// Finds what `name` is in a module: a child, something it defines, or something it uses.
    fn look_up(&self, at: usize, name: &str, rest: &[String], hops: usize) -> Option<Way> {
        let module = &self.modules[at];
        if let Some(child) = module.children.get(name) {
            return self.walk(*child, rest, hops);
        }
        if module.items.contains(name) {
            return Some(Way::to(Target::Item { file: module.file.clone(), name: name.to_owned() }));
        }
        let follow = |used: &Use, rest: &[String]| {
            let path: Vec<_> = used.named.path.iter().chain(rest).cloned().collect();
            // `use x::x` would find itself.
            let is_other = used.named.path.first().map(String::as_str) != Some(name) || used.named.path.len() > 1;
            let mut way = is_other.then(|| self.resolve_in(at, &path, hops)).flatten()?;
            way.by.push(at);
            Some(way)
        };
        if let Some(used) = module.uses.iter().find(|u| u.name.as_deref() == Some(name)) {
            return follow(used, rest);
        }
        let mut globs = module.uses.iter().filter(|u| u.name.is_none());
        let tail: Vec<_> = std::iter::once(name.to_owned()).chain(rest.iter().cloned()).collect();
        globs.find_map(|u| follow(u, &tail))
    }

    /// Returns the arrows from each file to others, each once, at its first line.
    pub(crate) fn arrows(&self) -> Vec<Arrow> {
        let mut first = BTreeMap::new();
        for (at, module) in self.modules.iter().enumerate() {
            for (to, line) in self.named_files(at) {
                if to != module.file {
                    let seen = first.entry((module.file.clone(), to)).or_insert(line);
                    *seen = line.min(*seen);
                }
            }
        }
        first.into_iter().map(|((from, to), line)| Arrow { from, to, line }).collect()
    }

    /// Returns the files that a module names, with the lines: where what it names is defined, and where it has it from.
    fn named_files(&self, at: usize) -> Vec<(String, usize)> {
        let module = &self.modules[at];
        let mut found = Vec::new();
        for used in module.uses.iter().filter(|u| !u.passes_on) {
            let Some(way) = self.follow(at, &used.named.path) else { continue };
            found.extend(self.files_by(&way).map(|f| (f, used.named.line)));
            match way.end {
                Target::Item { file, .. } => found.push((file, used.named.line)),
                Target::Module(m) if used.name.is_some() => found.push((self.modules[m].file.clone(), used.named.line)),
                Target::Module(m) => found.extend(self.files_behind(m).into_iter().map(|f| (f, used.named.line))),
            }
        }
        for named in &module.paths {
            let Some(way) = self.follow(at, &named.path) else { continue };
            // One word may be a variable; a module alone is named by none.
            if named.path.len() == 1 && matches!(way.end, Target::Module(_)) {
                continue;
            }
            found.extend(self.files_by(&way).map(|f| (f, named.line)));
            match way.end {
                Target::Item { file, .. } => found.push((file, named.line)),
                Target::Module(m) => found.push((self.modules[m].file.clone(), named.line)),
            }
        }
        found
    }

    /// Returns the files that pass a name on. Not the root: the names that it gives to floors and their modules are how
    /// everybody names them, and it is above all.
    fn files_by(&self, way: &Way) -> impl Iterator<Item = String> {
        let root = &self.modules[0].file;
        way.by.iter().map(|m| &self.modules[*m].file).filter(move |f| *f != root).cloned()
    }

    /// Returns the files of everything that `use module::*` brings in.
    fn files_behind(&self, at: usize) -> BTreeSet<String> {
        let module = &self.modules[at];
        let mut found = BTreeSet::new();
        if !module.items.is_empty() {
            found.insert(module.file.clone());
        }
        for used in &module.uses {
            if let Some(Target::Item { file, .. }) = self.resolve(at, &used.named.path) {
                found.insert(file);
            }
        }
        found
    }

    /// Returns the files that the crate consists of.
    pub(crate) fn files(&self) -> BTreeSet<&str> {
        self.modules.iter().map(|m| m.file.as_str()).collect()
    }
}

impl Module {
    fn add_use(&mut self, tree: &UseTree, passes_on: bool) {
        let mut path = Vec::new();
        self.add_use_below(tree, passes_on, &mut path);
    }

    fn add_use_below(&mut self, tree: &UseTree, passes_on: bool, path: &mut Vec<String>) {
        let line = line_of(tree);
        let mut push = |path: Vec<String>, name: Option<String>| {
            self.uses.push(Use { named: Named { path, line }, name, passes_on });
        };
        let with = |path: &[String], last: String| path.iter().cloned().chain([last]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(p) => {
                path.push(p.ident.to_string());
                self.add_use_below(&p.tree, passes_on, path);
                path.pop();
            }
            UseTree::Name(n) if n.ident == "self" => push(path.clone(), path.last().cloned()),
            UseTree::Name(n) => push(with(path, n.ident.to_string()), Some(n.ident.to_string())),
            UseTree::Rename(r) if r.ident == "self" => push(path.clone(), Some(r.rename.to_string())),
            UseTree::Rename(r) => push(with(path, r.ident.to_string()), Some(r.rename.to_string())),
            UseTree::Glob(_) => push(path.clone(), None),
            UseTree::Group(g) => g.items.iter().for_each(|t| self.add_use_below(t, passes_on, path)),
        }
    }
}

/// Collects what a module's items name.
struct Names<'a> {
    module: &'a mut Module,
    /// The type whose methods are visited.
    of: Option<String>,
    /// The trait whose methods are visited is public, and so they are.
    of_public_trait: bool,
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attrs(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.module.paths.push(named(path));
        visit::visit_path(self, path);
    }

    /// A `use` inside a function.
    fn visit_item_use(&mut self, u: &'ast syn::ItemUse) {
        self.module.add_use(&u.tree, false);
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        if let syn::Type::Path(of) = &*block.self_ty {
            let what = block.trait_.as_ref().map(|(_, path, _)| named(path));
            self.module.impls.push(Impl { of: named(&of.path), what });
        }
        let of = match &*block.self_ty {
            syn::Type::Path(of) => of.path.segments.last().map(|s| s.ident.to_string()),
            _ => None,
        };
        let before = std::mem::replace(&mut self.of, of);
        visit::visit_item_impl(self, block);
        self.of = before;
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        let before = self.of.replace(item.ident.to_string());
        self.of_public_trait = matches!(item.vis, Visibility::Public(_));
        visit::visit_item_trait(self, item);
        self.of = before;
    }

    fn visit_item_fn(&mut self, f: &'ast syn::ItemFn) {
        self.add_function(&f.attrs, &f.sig, matches!(f.vis, Visibility::Public(_)), Some(&f.block));
        visit::visit_item_fn(self, f);
    }

    fn visit_impl_item_fn(&mut self, f: &'ast syn::ImplItemFn) {
        self.add_function(&f.attrs, &f.sig, matches!(f.vis, Visibility::Public(_)), Some(&f.block));
        visit::visit_impl_item_fn(self, f);
    }

    fn visit_trait_item_fn(&mut self, f: &'ast syn::TraitItemFn) {
        self.add_function(&f.attrs, &f.sig, self.of_public_trait, f.default.as_ref());
        visit::visit_trait_item_fn(self, f);
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attrs = match item {
            syn::ImplItem::Fn(f) => &f.attrs,
            syn::ImplItem::Const(c) => &c.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attrs) {
            visit::visit_impl_item(self, item);
        }
    }

    /// What stands in a macro is no syntax yet: every `a::b` in it counts as a path.
    fn visit_macro(&mut self, m: &'ast syn::Macro) {
        self.module.paths.push(named(&m.path));
        scan_tokens(m.tokens.clone(), &mut self.module.paths);
    }
}

impl Names<'_> {
    fn add_function(&mut self, attrs: &[Attribute], sig: &syn::Signature, is_public: bool, block: Option<&syn::Block>) {
        let line = sig.fn_token.span.start().line;
        let first = attrs.first().map_or(line, |a| a.pound_token.spans[0].start().line);
        let last = block.map_or(line, |b| b.brace_token.span.close().start().line);
        self.module.functions.push(Function {
            name: sig.ident.to_string(),
            of: self.of.clone(),
            is_public,
            says_context: says_context(attrs),
            lines: (first, line, last),
        });
    }
}

fn scan_tokens(tokens: proc_macro2::TokenStream, out: &mut Vec<Named>) {
    use proc_macro2::TokenTree;
    let mut path: Vec<String> = Vec::new();
    let (mut line, mut colons) = (0, 0);
    for token in tokens {
        match &token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    flush(&mut path, line, out);
                    line = token.span().start().line;
                }
                path.push(ident.to_string());
                colons = 0;
            }
            TokenTree::Punct(p) if p.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                flush(&mut path, line, out);
                colons = 0;
                scan_tokens(group.stream(), out);
            }
            _ => {
                flush(&mut path, line, out);
                colons = 0;
            }
        }
    }
    flush(&mut path, line, out);
}

fn flush(path: &mut Vec<String>, line: usize, out: &mut Vec<Named>) {
    let path = std::mem::take(path);
    // `$crate::x` comes as `crate::x` here.
    if path.len() > 1 {
        out.push(Named { path, line });
    }
}

fn named(path: &syn::Path) -> Named {
    Named {
        path: path.segments.iter().map(|s| s.ident.to_string()).collect(),
        line: path.segments.first().map_or(1, |s| s.ident.span().start().line),
    }
}

fn line_of(tree: &UseTree) -> usize {
    match tree {
        UseTree::Path(p) => p.ident.span().start().line,
        UseTree::Name(n) => n.ident.span().start().line,
        UseTree::Rename(r) => r.ident.span().start().line,
        UseTree::Glob(g) => g.star_token.spans[0].start().line,
        UseTree::Group(g) => g.brace_token.span.open().start().line,
    }
}

fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(i) => &i.ident,
        Item::Enum(i) => &i.ident,
        Item::Fn(i) => &i.sig.ident,
        Item::Macro(i) => i.ident.as_ref()?,
        Item::Static(i) => &i.ident,
        Item::Struct(i) => &i.ident,
        Item::Trait(i) => &i.ident,
        Item::Type(i) => &i.ident,
        Item::Union(i) => &i.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

pub(crate) fn attrs(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(i) => &i.attrs,
        Item::Enum(i) => &i.attrs,
        Item::ExternCrate(i) => &i.attrs,
        Item::Fn(i) => &i.attrs,
        Item::ForeignMod(i) => &i.attrs,
        Item::Impl(i) => &i.attrs,
        Item::Macro(i) => &i.attrs,
        Item::Mod(i) => &i.attrs,
        Item::Static(i) => &i.attrs,
        Item::Struct(i) => &i.attrs,
        Item::Trait(i) => &i.attrs,
        Item::Type(i) => &i.attrs,
        Item::Union(i) => &i.attrs,
        Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// Whether something is there in tests alone: `cfg(test)`, `cfg(all(test, ..))`, `#[test]`.
pub(crate) fn is_for_tests(attrs: &[Attribute]) -> bool {
    let is_test = |meta: &syn::Meta| match meta {
        syn::Meta::Path(p) => p.is_ident("test"),
        syn::Meta::List(l) if l.path.is_ident("all") => l
            .parse_args_with(Punctuated::<syn::Meta, Token![,]>::parse_terminated)
            .is_ok_and(|parts| parts.iter().any(|m| m.path().is_ident("test"))),
        _ => false,
    };
    attrs.iter().any(|a| {
        a.path().is_ident("test")
            || (a.path().is_ident("cfg") && a.parse_args::<syn::Meta>().is_ok_and(|meta| is_test(&meta)))
    })
}

/// Whether documentation has a line that begins with `# Context`, or, as what C programs read has, with `Context:`.
fn says_context(attrs: &[Attribute]) -> bool {
    let docs = attrs.iter().filter(|a| a.path().is_ident("doc")).filter_map(|a| match &a.meta {
        syn::Meta::NameValue(syn::MetaNameValue { value: syn::Expr::Lit(l), .. }) => match &l.lit {
            syn::Lit::Str(s) => Some(s.value()),
            _ => None,
        },
        _ => None,
    });
    docs.into_iter().any(|line| ["# Context", "Context: "].iter().any(|words| line.trim_start().starts_with(words)))
}

/// Returns the folder of a file's children: beside a root or a `mod.rs`, else below its own name.
fn dir_of(name: &str) -> String {
    let path = Path::new(name);
    let is_whole = ["lib.rs", "main.rs", "mod.rs"].iter().any(|n| path.ends_with(n));
    let dir = if is_whole { path.parent().unwrap_or(path).to_owned() } else { path.with_extension("") };
    dir.display().to_string()
}

pub(crate) fn normal(path: &Path) -> String {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out.display().to_string()
}

/// Reads a crate that is made up: its files' names, and their texts.
pub(crate) fn made_up(files: &[(&str, &str)]) -> Crate {
    let read = |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
    Crate::read(files[0].0, &read)
}

mod can_fail {
    use super::*;

    /// A root with a floor `low` of two files, and a file that says `text`.
    fn arrows_of(text: &str) -> Vec<(String, usize)> {
        let krate = made_up(&[
            (
                "src/lib.rs",
                "mod low; mod high; pub use low::{a, b}; pub struct Front; pub mod words { pub use crate::low::a::A; }",
            ),
            ("src/low/mod.rs", "pub mod a; pub mod b; pub use a::A as First;"),
            ("src/low/a.rs", "pub struct A; pub fn f() {} #[macro_export] macro_rules! exported { () => {} }"),
            ("src/low/b.rs", "pub use super::a::*; pub mod inside { pub struct C; }"),
            ("src/high.rs", text),
            ("src/high/child.rs", "pub struct D;"),
        ]);
        assert_eq!(krate.bad, [""; 0]);
        let arrows = krate.arrows().into_iter().filter(|a| a.from == "src/high.rs");
        arrows.map(|a| (a.to, a.line)).collect()
    }

    fn leads(text: &str, to: &str) {
        assert_eq!(arrows_of(text), [(format!("src/{to}.rs"), 2)], "{text}");
    }

    #[test]
    fn every_way_to_name_a_file_leads_there() {
        leads("\nuse crate::low::a::A;", "low/a");
        leads("\nuse crate::a;", "low/a");
        leads("\nuse crate::{a::{A, f}};", "low/a");
        leads("\nuse super::low::a::A as Other;", "low/a");
        leads("\nuse crate::words::A;", "low/a");
        leads("\nuse self::super::b::inside::C;", "low/b");
        leads("\nuse crate::b::inside::*;", "low/b");
        leads("\nfn f() { crate::a::f() }", "low/a");
        leads("\nfn f(_: super::a::A) {}", "low/a");
        leads("\nfn f() { use crate::a::f; }", "low/a");
        leads("\nfn f() { assert!(crate::a::f() == ()); }", "low/a");
        leads("\ncrate::exported!();", "low/a");
        leads("\nuse crate::Front;", "lib");
        leads("mod child;\nfn f() { child::D; }", "high/child");
        leads("mod inner {\nuse super::super::a::A; }", "low/a");
    }

    /// Who names a thing by a file that has it from another one depends on both.
    #[test]
    fn a_file_that_passes_a_name_on_is_named_too() {
        let both = |by: &str| [("src/low/a.rs".to_owned(), 2), (format!("src/{by}.rs"), 2)];
        assert_eq!(arrows_of("\nuse crate::low::First;"), both("low/mod"));
        assert_eq!(arrows_of("\nuse crate::b::A;"), both("low/b"));
        assert_eq!(arrows_of("\nfn f(_: super::b::A) {}"), both("low/b"));
        // What a module has for itself leads on, and is no way through another file.
        leads("use std::fmt;\nuse crate::a::A; fn f(_: A) {}", "low/a");
    }

    #[test]
    fn what_is_passed_on_or_for_tests_alone_is_no_arrow() {
        assert_eq!(arrows_of("mod child; pub use child::D; use std::fmt; fn low() {}"), []);
        assert_eq!(arrows_of("#[cfg(test)] mod tests { use crate::a::A; }"), []);
        assert_eq!(arrows_of("#[cfg(all(test, not(loom)))] mod tests { use crate::a::A; }"), []);
        assert_eq!(arrows_of("// crate::a\nconst S: &str = \"crate::a\";"), []);
        leads("pub use crate::a::A;\nfn f(_: A) {}", "low/a");
    }

    #[test]
    fn a_module_without_a_file_is_named() {
        let krate = made_up(&[("src/lib.rs", "mod gone;"), ("src/other.rs", "")]);
        assert_eq!(krate.bad, ["src/gone/mod.rs:1: there is no such file"]);
    }
}
