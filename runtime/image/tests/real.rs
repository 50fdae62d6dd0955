//! Snapshots that the real programs made, where there are any: a variable names the program, and without it the test says that it
//! is skipped.
//!
//! `SOFTFAULT_QEMU=qemu-system-x86_64`: QEMU 9.0 or later, which may need `SOFTFAULT_QEMU_ARGS`, words between blanks, to find its
//! firmware. `SOFTFAULT_CRIU=criu`: CRIU 4.0 or later, with the rights to dump a process.
#![allow(clippy::cast_possible_truncation, reason = "small images")]

mod common;

use common::{filled, read_all};
use serde_json::{Value, json};
use softfault_image::import::{criu, qemu};
use softfault_image::{Image, PAGE_SIZE, ops, write_sidecar};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

/// Memory of the machine.
const MIB: usize = 64;

/// A machine that does not run, and is told what to do.
struct Machine {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// Starts one, with the bytes of a file in its memory at 2 MiB.
    fn start(program: &str, folder: &Path, data: &Path, more: &[&str]) -> Self {
        let socket = folder.join("qmp");
        let own = std::env::var("SOFTFAULT_QEMU_ARGS").unwrap_or_default();
        let mut child = Command::new(program)
            .args(own.split_whitespace())
            .args(more)
            .args(["-machine", "pc", "-accel", "tcg", "-S", "-nodefaults", "-vga", "std", "-display", "none"])
            .args(["-m", &format!("{MIB}M")])
            .arg("-device")
            .arg(format!("loader,file={},addr=0x200000,force-raw=on", data.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .spawn()
            .expect(program);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) => {
                    let ended = child.try_wait().expect("wait");
                    assert!(ended.is_none(), "{program} has ended: {ended:?}");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        };
        let mut machine = Self { child, stream: BufReader::new(stream) };
        machine.answer();
        machine.tell("qmp_capabilities", &json!({}));
        machine
    }

    /// Waits for an answer, and passes over events.
    fn answer(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).expect("read") > 0, "the machine has ended");
            let json: Value = serde_json::from_str(&line).expect("JSON");
            if json.get("event").is_none() {
                return json;
            }
        }
    }

    fn tell(&mut self, execute: &str, arguments: &Value) -> Value {
        let command = json!({ "execute": execute, "arguments": arguments }).to_string();
        self.stream.get_mut().write_all(command.as_bytes()).expect("write");
        let answer = self.answer();
        answer.get("return").unwrap_or_else(|| panic!("{execute}: {answer}")).clone()
    }

    /// Saves the machine into a file.
    fn migrate(&mut self, capabilities: &[&str], to: &Path) {
        let list: Vec<Value> = capabilities.iter().map(|c| json!({ "capability": c, "state": true })).collect();
        self.tell("migrate-set-capabilities", &json!({ "capabilities": list }));
        self.tell("migrate", &json!({ "uri": format!("file:{}", to.display()) }));
        loop {
            let state = self.tell("query-migrate", &json!({}));
            match state["status"].as_str() {
                Some("completed") => return,
                Some("failed" | "cancelled") => panic!("{state}"),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

#[test]
fn a_machine_that_qemu_saved_is_an_image() {
    let Ok(program) = std::env::var("SOFTFAULT_QEMU") else {
        println!("skipped: SOFTFAULT_QEMU names no qemu-system-x86_64 of version 9.0 or later");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("data"), filled(2000, 9).concat()).expect("write");
    for capabilities in [&["mapped-ram"][..], &["mapped-ram", "multifd"]] {
        let mut machine = Machine::start(&program, folder.path(), &at("data"), &[]);
        machine.migrate(capabilities, &at("saved"));
        let dump = json!({ "val": 0, "size": MIB << 20, "filename": at("dump").display().to_string() });
        machine.tell("pmemsave", &dump);
        drop(machine);
        let dump = fs::read(at("dump")).expect("what the machine says of its memory");
        let image = qemu::open(at("saved")).expect("open");
        let ram = image.regions().iter().find(|r| r.name == "pc.ram").expect("the memory");
        assert_eq!(ram.len_bytes, (MIB as u64) << 20);
        let names: Vec<&str> = image.regions().iter().map(|r| r.name.as_str()).collect();
        assert!(names.len() > 2, "blocks of the graphics and of the firmware: {names:?}");
        let all = read_all(&image);
        let memory = &all[ram.pages().start as usize..ram.pages().end as usize];
        // Between 640 KiB and 1 MiB the guest sees other blocks.
        for (p, page) in memory.iter().enumerate().filter(|(p, _)| !(160..256).contains(p)) {
            assert!(page[..] == dump[p * PAGE_SIZE..(p + 1) * PAGE_SIZE], "{capabilities:?}: page {p}");
        }
        assert!(memory[512..2512].concat() == fs::read(at("data")).expect("read"), "what was put there");
        // And it is as good as any image.
        let image = Arc::new(image);
        write_sidecar(&image, at("side.sfi")).expect("sidecar");
        let side = Image::open(at("side.sfi")).expect("open");
        side.verify(&mut |_| ()).expect("verify");
        ops::convert(&side, at("copy.sfi"), &ops::Stored::default()).expect("convert");
        assert_eq!(read_all(&Image::open(at("copy.sfi")).expect("open")), all);
        for name in ["saved", "dump", "side.sfi", "copy.sfi", "qmp"] {
            fs::remove_file(at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    // With `x-ignore-shared` each block says where it lies, too. That one is ignored, QEMU 10.0 cannot do: it saves with EFAULT. A
    // memfd is not.
    let more = ["-object", "memory-backend-memfd,id=shared,size=64M,share=on", "-machine", "memory-backend=shared"];
    let mut machine = Machine::start(&program, folder.path(), &at("data"), &more);
    machine.migrate(&["mapped-ram", "x-ignore-shared"], &at("saved"));
    drop(machine);
    let image = qemu::open(at("saved")).expect("open");
    let ram = image.regions().iter().find(|r| r.name == "shared").expect("the memory").pages();
    let mut found = vec![0; 2000 * PAGE_SIZE];
    image.reader().read(ram.start + 512, &mut found).expect("read");
    assert!(found == fs::read(at("data")).expect("read"), "what was put there");
    read_all(&image);
}

const CHILD: &str = "SOFTFAULT_IMAGE_DUMPED";

/// Has known bytes, says where, and waits to be dumped. Of itself it is no test.
#[test]
fn the_process_that_is_dumped() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = Path::new(&folder);
    let memory = filled(900, 4).concat();
    fs::write(folder.join("address.new"), (memory.as_ptr() as usize).to_string()).expect("write");
    fs::rename(folder.join("address.new"), folder.join("address")).expect("rename");
    while !folder.join("end").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::hint::black_box(&memory);
}

#[test]
fn a_process_that_criu_dumped_is_an_image() {
    let Ok(program) = std::env::var("SOFTFAULT_CRIU") else {
        println!("skipped: SOFTFAULT_CRIU names no criu of version 4.0 or later");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let null = std::process::Stdio::null;
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "the_process_that_is_dumped", "--test-threads=1"])
        .env(CHILD, folder.path())
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .spawn()
        .expect("a process");
    while !at("address").exists() {
        assert!(child.try_wait().expect("wait").is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    let address: u64 = fs::read_to_string(at("address")).expect("read").parse().expect("a number");
    let pid = child.id();
    fs::create_dir(at("dump")).expect("a folder");
    let out = Command::new(program)
        .args(["dump", "--leave-running", "--shell-job", "--file-locks", "-t", &pid.to_string(), "-D"])
        .arg(at("dump"))
        .output()
        .expect("criu");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    fs::write(at("end"), "").expect("write");
    assert!(child.wait().expect("wait").success(), "it has gone on");

    let image = criu::open(at("dump"), pid).expect("open");
    let wanted = filled(900, 4).concat();
    let holds = |r: &&softfault_image::Region| (r.address..r.address + r.len_bytes).contains(&address);
    let region = image.regions().iter().find(holds).expect("the mapping of the memory");
    let first = (region.offset + (address - region.address)) / PAGE_SIZE as u64;
    let mut found = vec![0; 901 * PAGE_SIZE];
    image.reader().read(first, &mut found).expect("read");
    let from = address as usize % PAGE_SIZE;
    assert!(found[from..from + wanted.len()] == wanted[..], "its memory is what it had");
    // All of it has a name, and can be kept.
    let all = image.compute_content_digest().expect("every page");
    ops::convert(&image, at("copy.sfi"), &ops::Stored::default()).expect("convert");
    let copy = Image::open(at("copy.sfi")).expect("open");
    assert_eq!((copy.content_digest(), copy.regions()), (Some(all), image.regions()));
    copy.verify(&mut |_| ()).expect("verify");
}
