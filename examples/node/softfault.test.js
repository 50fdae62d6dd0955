'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test, before, after } = require('node:test');
const { Image, Runtime, SoftfaultError } = require('./softfault.js');

const PAGE = 4096, PAGES = 1024, SIZE = PAGES * PAGE, WORDS = SIZE / 8;
let folder, file;

before(() => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'softfault-node-'));
    file = path.join(folder, 'words');
    fs.writeFileSync(file, BigUint64Array.from({ length: WORDS }, (_, i) => BigInt(i)));
});
after(() => fs.rmSync(folder, { recursive: true }));

function mapped(writable = false, name = file) {
    const rt = new Runtime({ cacheLimit: SIZE / 4 });
    const object = rt.open(name, { writable });
    const arena = rt.arena(SIZE);
    arena.map(object, { writable });
    return { rt, object, arena };
}

function close({ rt, object, arena }) {
    arena.close();
    object.close();
    rt.close();
}

function isMapped(address) {
    return fs.readFileSync('/proc/self/maps', 'utf8').split('\n').some((line) => {
        const [start, end] = line.split(' ')[0].split('-').map((n) => BigInt('0x' + (n || '0')));
        return start <= address && address < end;
    });
}

test('a sum over four times the cache', () => {
    const it = mapped();
    const words = new BigUint64Array(it.arena.buffer());
    assert.strictEqual(words.length, WORDS);
    for (let round = 0; round < 2; round++) {
        let sum = 0n;
        for (const word of words)
            sum += word;
        assert.strictEqual(sum, BigInt(WORDS) * BigInt(WORDS - 1) / 2n);
    }
    assert.ok(it.rt.counter('nr_cached_pages') <= SIZE / 4 / PAGE);
    assert.ok(it.rt.counter('pgmajfault') > 0);
    close(it);
});

test('a file is mapped in one call', () => {
    const copy = path.join(folder, 'whole');
    fs.copyFileSync(file, copy);
    const rt = new Runtime({ cacheLimit: SIZE / 4 });
    const { arena, object } = rt.mapFile(copy, { writable: true });
    const words = new BigUint64Array(arena.buffer());
    assert.strictEqual(words.length, WORDS);
    assert.strictEqual(words[WORDS - 1], BigInt(WORDS - 1));
    words[0] = 7n;
    object.sync();
    assert.strictEqual(fs.readFileSync(copy).readBigUInt64LE(0), 7n);
    close({ rt: { close() {} }, object, arena });

    const empty = path.join(folder, 'empty');
    fs.writeFileSync(empty, '');
    const none = rt.mapFile(empty);
    assert.strictEqual(none.object.length, 0);
    assert.throws(() => none.arena.buffer(), RangeError);
    assert.throws(() => rt.mapFile('/no/such/file'), (e) => e.errno === os.constants.errno.ENOENT && e.path === '/no/such/file');
    close({ rt, ...none });
});

test('stores reach the file', () => {
    const copy = path.join(folder, 'copy');
    fs.copyFileSync(file, copy);
    const it = mapped(true, copy);
    const words = new BigUint64Array(it.arena.buffer());
    for (let i = 0; i < WORDS; i += PAGE / 8)
        words[i] = ~BigInt(i);
    it.arena.write(8, Buffer.from('nine ten'));
    it.object.sync();
    const bytes = fs.readFileSync(copy);
    for (let i = 0; i < WORDS; i += PAGE / 8)
        assert.strictEqual(bytes.readBigUInt64LE(i * 8), BigInt.asUintN(64, ~BigInt(i)));
    assert.strictEqual(bytes.toString('latin1', 8, 16), 'nine ten');
    close(it);
});

test('errors have an errno and words', () => {
    const it = mapped();
    assert.throws(() => it.rt.open('/no/such/file'), (e) => e instanceof SoftfaultError && e.errno === os.constants.errno.ENOENT && e.path === '/no/such/file');
    assert.throws(() => it.arena.map(it.object), (e) => e.errno === os.constants.errno.EEXIST);
    assert.throws(() => it.arena.buffer(0, SIZE + 1), RangeError);
    assert.throws(() => it.arena.buffer(SIZE), RangeError);
    close(it);
    assert.throws(() => it.arena.buffer(), TypeError);
    assert.throws(() => it.rt.anonymous(PAGE), (e) => e.errno === os.constants.errno.EINVAL);
});

test('a page that cannot be had is an error of read', () => {
    const cut = path.join(folder, 'cut');
    fs.copyFileSync(file, cut);
    const it = mapped(false, cut);
    fs.truncateSync(cut, PAGE);
    assert.strictEqual(it.arena.read(8, 1)[0], 1);
    assert.throws(() => it.arena.read(512 * PAGE, 1), (e) => e instanceof SoftfaultError && (e.reason & 2) !== 0);
    close(it);
});

test('system calls need a pin', () => {
    const it = mapped();
    const bytes = new Uint8Array(it.arena.buffer(0, 16 * PAGE));
    const out = path.join(folder, 'written');
    const pin = it.arena.pin(0, 16 * PAGE);
    fs.writeFileSync(out, bytes);
    pin.close();
    assert.deepStrictEqual(fs.readFileSync(out), fs.readFileSync(file).subarray(0, 16 * PAGE));
    close(it);
});

test('a cache that is locked', (t) => {
    const rt = new Runtime({ cacheLimit: SIZE / 4, lockCache: true });
    // A file of its own: one that is open already is the object that there is, in the runtime that opened it.
    const own = `${file}.locked`;
    fs.copyFileSync(file, own);
    let object;
    try {
        object = rt.open(own);
    } catch (e) {
        assert.match(e.message, /RLIMIT_MEMLOCK/);
        return t.skip(e.message);
    }
    const arena = rt.arena(SIZE);
    arena.map(object);
    arena.faultIn(0, PAGE);
    const kib = fs.readFileSync('/proc/self/status', 'utf8').match(/VmLck:\s*(\d+)/)[1];
    assert.ok(Number(kib) >= 4, `${kib} KiB are locked`);
    close({ rt, object, arena });
});

test('a typed array keeps its memory', { skip: global.gc === undefined && 'needs --expose-gc' }, async () => {
    const it = mapped();
    let part = new BigUint64Array(it.arena.buffer()).subarray(WORDS / 2);
    close(it);
    const turns = async () => {
        for (let i = 0; i < 20; i++) {
            global.gc();
            await new Promise((resolve) => setImmediate(resolve));
        }
    };
    await turns();
    assert.strictEqual(part[0], BigInt(WORDS / 2));
    assert.strictEqual(part.at(-1), BigInt(WORDS - 1));
    part = null;
    await turns();
});

test('workers of WebAssembly trap as ever', async () => {
    // (module (memory 1) (func (export "load") (param i32) (result i32) local.get 0 i32.load))
    const bytes = new Uint8Array([
        0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 5, 3, 1, 0, 1, 7, 8, 1, 4, 108, 111, 97, 100,
        0, 0, 10, 9, 1, 7, 0, 32, 0, 40, 2, 0, 11,
    ]);
    const { instance } = await WebAssembly.instantiate(bytes);
    const it = mapped();
    const words = new BigUint64Array(it.arena.buffer());
    for (let i = 0; i < 100; i++) {
        // V8 finds accesses out of bounds by SIGSEGV.
        assert.throws(() => instance.exports.load(0x7fffffff), WebAssembly.RuntimeError);
        assert.strictEqual(words[i * 512], BigInt(i * 512));
    }
    assert.strictEqual(instance.exports.load(0), 0);
    close(it);
});

test('stores are in the file after exit', () => {
    const stored = path.join(folder, 'stored');
    for (const end of ['', 'process.exit(0)', 'setTimeout(() => process.exit(0), 10)']) {
        fs.writeFileSync(stored, Buffer.alloc(16 * PAGE));
        const program = `
            const { Runtime } = require(${JSON.stringify(path.join(__dirname, 'softfault.js'))});
            const rt = new Runtime();
            const object = rt.open(${JSON.stringify(stored)}, { writable: true });
            const arena = rt.arena(object.length);
            arena.map(object, { writable: true });
            globalThis.kept = [rt, object, arena, new Uint8Array(arena.buffer()).fill(120)];
            ${end}`;
        require('node:child_process').execFileSync(process.execPath, ['-e', program], { timeout: 60000 });
        assert.ok(fs.readFileSync(stored).every((byte) => byte === 120), end);
    }
});

test('an image is memory again, lazily and privately', () => {
    const packed = path.join(folder, 'words.sfi');
    const raw = Image.open(file);
    raw.convert(packed);
    raw.close();
    const rt = new Runtime();
    const image = rt.openImage(packed);
    assert.strictEqual(image.length, SIZE);
    image.verify();
    assert.strictEqual(new BigUint64Array(image.read(77 * 8, 8).buffer)[0], 77n);
    const [one, two] = [image.restore(), image.restore()];
    assert.strictEqual(one.cachedPages, 0);
    const mine = new BigUint64Array(one.buffer());
    assert.strictEqual(mine[5], 5n);
    assert.ok(one.cachedPages > 0 && one.cachedPages < PAGES);
    mine.fill(1n);
    two.complete();
    const theirs = new BigUint64Array(two.buffer(0));
    assert.strictEqual(theirs.reduce((sum, word) => sum + word), BigInt(WORDS) * BigInt(WORDS - 1) / 2n);
    assert.throws(() => two.buffer('heap'), (e) => e instanceof SoftfaultError && e.errno === 2);
    for (const it of [one, two, image, rt])
        it.close();
    assert.strictEqual(mine[9], 1n, 'a buffer keeps its session');
    assert.throws(() => one.cachedPages, TypeError);
});

test('damage of an image is named', () => {
    const hurt = path.join(folder, 'hurt.sfi');
    const raw = Image.open(file);
    raw.convert(hurt, { codec: 0 });
    raw.close();
    const bytes = fs.readFileSync(hurt);
    bytes[bytes.length >> 1] ^= 1;
    fs.writeFileSync(hurt, bytes);
    const image = Image.open(hurt);
    assert.throws(() => image.verify(), (e) => {
        assert.deepStrictEqual([e.errno, e.image.cause, e.image.file], [74, 3, hurt]);
        return e.image.offset <= bytes.length / 2;
    });
    image.close();
    assert.throws(() => Image.open(hurt + '.none'), (e) => e.errno === 2 && e.path === hurt + '.none');
});
