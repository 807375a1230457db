// The history in the browser's IndexedDB, so that it is there again after a reload. Where a browser has none to give, as
// in some private windows, nothing is kept.

const NAME = "bitdance-edge";
const STORE = "images";

export class Past {
  constructor(most) {
    this.most = most;
    this.database = opened().catch(() => null);
  }

  // The entries, oldest first.
  async entries() {
    return (await this.ask("readonly", (store) => store.getAll())) ?? [];
  }

  // Keeps an entry, and drops the oldest over the limit.
  async add(entry) {
    await this.ask("readwrite", (store) => store.add(entry));
    const keys = (await this.ask("readonly", (store) => store.getAllKeys())) ?? [];
    if (keys.length > this.most) {
      const last = keys[keys.length - this.most - 1];
      await this.ask("readwrite", (store) => store.delete(IDBKeyRange.upperBound(last)));
    }
  }

  async clear() {
    await this.ask("readwrite", (store) => store.clear());
  }

  // The result of one request, or null where the database cannot be used or is full.
  async ask(mode, request) {
    const database = await this.database;
    if (!database) return null;
    return result(request(database.transaction(STORE, mode).objectStore(STORE))).catch(() => null);
  }
}

function opened() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { autoIncrement: true });
  return result(request);
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
